"""The contract in `model/schema.py`, and this project's source validated with it."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ondol.config import Settings
from ondol.contract import Checked, Contract, check_rows, encode, fit_encodings, load_schema
from ondol.errors import UserError
from ondol.setup.client import name_client, write_client


def test_schema_names_a_target_and_features(contract: Contract) -> None:
    assert contract.target_column.role == "target"
    assert contract.features
    assert contract.target not in {column.name for column in contract.features}


def test_rows_of_the_source_keep_the_contract(checked: Checked, settings: Settings) -> None:
    reasons = checked.reasons.groupby(["column", "check"]).size()
    assert len(checked.bad) <= settings.data.max_bad_share * len(checked.frame), reasons.to_string()


def test_checking_is_repeatable(checked: Checked, table: pa.Table, contract: Contract) -> None:
    again = check_rows(table, contract.used, load_schema().to_schema())
    pd.testing.assert_frame_equal(again.reasons, checked.reasons)


def test_client_is_up_to_date(contract: Contract, settings: Settings) -> None:
    """`ml client` writes it again, if there is one."""
    path = settings.root / name_client(settings.project.name)
    if path.exists():
        assert path.read_text(encoding="utf-8") == write_client(contract, settings.project.name)


def test_missing_column_is_named(table: pa.Table, contract: Contract) -> None:
    name = contract.features[0].name
    with pytest.raises(UserError, match=re.escape(f'"{name}"')):
        check_rows(table.drop_columns([name]), contract.used)


def test_every_feature_has_an_encoding(contract: Contract, rows: pd.DataFrame) -> None:
    encoded = encode(fit_encodings(contract, rows), rows)
    names = [column.name for column in contract.features]
    assert list(encoded)[: len(names)] == names  # then the parts of dates
    assert len(encoded) == len(rows)
    numbers = encoded.select_dtypes("number")
    assert all(dtype == np.float32 for dtype in numbers.dtypes)
    assert not encoded.drop(columns=numbers.columns).isna().any().any()
