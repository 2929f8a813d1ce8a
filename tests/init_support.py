"""The project that the tests of `ml init` write into."""

import shutil
from pathlib import Path

from ondol.setup.initialize import InitReport

SAMPLE_MODEL = Path(__file__).parents[1] / "template" / "model" / "schema.py"
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
    """Write into `folder` what `ml init` needs of a project; return it."""
    (folder / "model").mkdir()
    shutil.copy(SAMPLE_MODEL, folder / "model" / "schema.py")
    (folder / "config.toml").write_text(CONFIG, encoding="utf-8")
    return folder


def of_role(report: InitReport, role: str) -> list[str]:
    """Return the names of the columns with `role`."""
    return [field.name for field in report.fields if field.role == role]
