"""The sections of the settings, each with its defaults: one for each `[section]` of `config.toml`."""

from flows.sections.base import Problem, Section, StorePlace, is_address
from flows.sections.data import Data, Dialect, Fetch, Leakage, Split
from flows.sections.model import Deploy, Gates, Train
from flows.sections.operate import Alerts, Environment, Log, Monitor, Ports, Project, Retention, Retrain, Service

__all__ = [
    "Alerts",
    "Data",
    "Deploy",
    "Dialect",
    "Environment",
    "Fetch",
    "Gates",
    "Leakage",
    "Log",
    "Monitor",
    "Ports",
    "Problem",
    "Project",
    "Retention",
    "Retrain",
    "Section",
    "Service",
    "Split",
    "StorePlace",
    "Train",
    "is_address",
]
