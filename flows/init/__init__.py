"""`ml init`: reads the owner's table and writes its contract, a draft to be edited."""

from flows.init.initialize import InitReport, initialize
from flows.init.report import print_report

__all__ = ["InitReport", "initialize", "print_report"]
