"""What the tests share: some rows of this project's own source, and a model that is fitted on them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ondol.config import Settings, load_settings
from ondol.contract import Checked, Contract, check_rows, load_contract, load_schema
from ondol.orchestration.environment import prepare

if TYPE_CHECKING:
    from ondol.training import Fitted

ROOT = Path(__file__).parents[1]
READ, USED = 100_000, 2_000  # rows that are read, and drawn from these


def pytest_configure() -> None:
    """Keep what the libraries leave behind in the project's `.ml`."""
    prepare(load_settings(ROOT))


@pytest.fixture(scope="session")
def settings() -> Settings:
    return load_settings(ROOT)


@pytest.fixture(scope="session")
def contract(settings: Settings) -> Contract:
    return load_contract(settings)


@pytest.fixture(scope="session")
def table(settings: Settings, contract: Contract) -> pa.Table:
    """Rows with a label, drawn from the beginning of the source, as they are."""
    from ondol.contract.checking import clean_column
    from ondol.ingestion import read_through
    from ondol.ingestion.ingest import open_project_source

    source = settings.data.source
    if "://" not in source and not (settings.root / source).exists():
        pytest.skip(f"{source} is not here: ML_DATA__SOURCE can name a table with the same columns")

    def take(batches: Iterator[pa.RecordBatch]) -> pa.Table:
        taken: list[pa.RecordBatch] = []
        for batch in batches:
            taken.append(batch)
            if sum(b.num_rows for b in taken) >= READ:
                break
        return pa.Table.from_batches(taken)

    found = read_through(open_project_source(settings, contract), take)
    labels, unreadable = clean_column(found.column(contract.target), contract.target_column)
    found = found.filter(pa.array(labels.notna().to_numpy() | unreadable))
    chosen = np.random.default_rng(0).permutation(found.num_rows)[:USED]
    return found.take(pa.array(np.sort(chosen)))


@pytest.fixture(scope="session")
def checked(table: pa.Table, contract: Contract) -> Checked:
    """These rows, validated with `model/schema.py`."""
    return check_rows(table, contract.used, load_schema().to_schema())


@pytest.fixture(scope="session")
def rows(checked: Checked) -> pd.DataFrame:
    """The valid ones, under the columns' real names."""
    return checked.valid().reset_index(drop=True)


@pytest.fixture(scope="session")
def fitted(settings: Settings, contract: Contract, rows: pd.DataFrame) -> "Fitted":
    """The project's model, fitted on `rows` as the pipeline would fit it: `.pipeline`, `.contract`."""
    from ondol.training.dataset import define_holdout
    from ondol.training.train import fit_rows

    holdout = define_holdout(settings.model_copy(update={"split": type(settings.split)()}), contract, "")
    return fit_rows(settings, contract, rows, holdout)


@pytest.fixture(scope="session")
def features(fitted: "Fitted", rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as `model/features.py` gets them."""
    from ondol.contract import encode

    return encode(fitted.contract, rows)


@pytest.fixture(scope="session")
def target(fitted: "Fitted", rows: pd.DataFrame) -> "np.ndarray[Any, Any]":
    """What is to be predicted: class numbers, or values."""
    from ondol.contract import encode_target

    return encode_target(fitted.contract, rows[fitted.contract.target])
