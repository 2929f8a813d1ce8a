"""The project that the tests of `ml init` write into."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from ondol.contract import describe
from ondol.contract.checking import check_rows
from ondol.ingestion.sources import Reading, open_source
from ondol.setup.initialize import InitReport, initialize, read_table

SAMPLE_MODEL = Path(__file__).parents[1] / "template" / "model" / "schema.py"
DATA = Path(__file__).parents[2] / "shared" / "data"
CONFIG = """# Ours.
[project]
name = "churn"  # the name

[data]
source = "sample://"  # rows
max_bad_share = 0.2

# How the model is trained.
[train]
seed = 1
"""


def make_project(folder: Path) -> Path:
    """Write the files that `ml init` needs into `folder`; return it."""
    (folder / "model").mkdir()
    shutil.copy(SAMPLE_MODEL, folder / "model" / "schema.py")
    (folder / "config.toml").write_text(CONFIG, encoding="utf-8")
    return folder


def of_role(report: InitReport, role: str) -> list[str]:
    """Return the names of the columns with `role`."""
    return [field.name for field in report.fields if field.role == role]


def make_frame(**columns):
    rng = np.random.default_rng(0)
    base = {"x": rng.normal(size=200).round(3), "y": rng.choice(["no", "yes"], 200)}
    return pd.DataFrame(columns | {name: values for name, values in base.items() if name not in columns})


def draft(project, frame, target="y", **options):
    frame.to_csv(project / "t.csv", index=False)
    return initialize(project, "t.csv", target, **options)


def field_of(report, name):
    return next(field for field in report.fields if field.name == name)


def load_schema(path):
    spec = importlib.util.spec_from_file_location(f"drafted_{abs(hash(path))}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Schema


def check_own_source(project, report):
    """Return the reasons for which the drafted contract refuses rows of the data that it was drafted from."""
    schema = load_schema(project / "model" / "schema.py")
    contract = describe(schema, report.target, report.problem)
    source = open_source(report.source, Reading(contract.kinds, project))
    table, _ = read_table(source, report.target)
    return check_rows(table, contract.columns, schema.to_schema()).reasons
