"""Leaks: what gives the target away, or lets the held-out rows look like those that were learned from."""

from flows.leaks.alarms import SAMPLE_ROWS, Alarm
from flows.leaks.search import find_alarms

__all__ = ["SAMPLE_ROWS", "Alarm", "find_alarms"]
