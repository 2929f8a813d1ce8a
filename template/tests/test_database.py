"""This project's rows in a PostgreSQL, read as `[data] source` would read them there.

`TEST_POSTGRES=postgresql://user@host/database` names the server; the ci workflow starts one.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy

from ondol.contract import Checked, Contract, check_rows, load_schema
from ondol.ingestion import Reading, open_source, read_through


@pytest.fixture
def address(table: pa.Table) -> Iterator[str]:
    """The address of the rows in a table of its own, which is dropped again."""
    server = os.environ.get("TEST_POSTGRES")
    if not server:
        pytest.skip("TEST_POSTGRES names no PostgreSQL")
    name = f"rows_{uuid.uuid4().hex[:12]}"
    engine = sqlalchemy.create_engine(server.replace("postgresql://", "postgresql+psycopg://"))
    table.to_pandas().convert_dtypes().to_sql(name, engine, index=False)
    try:
        yield f"{server}#{name}"
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP TABLE {name}")
        engine.dispose()


def test_rows_keep_the_contract_in_a_database_as_they_do_here(
    address: str, checked: Checked, contract: Contract, tmp_path: Path
) -> None:
    source = open_source(address, Reading(contract.kinds, tmp_path))
    found = read_through(source, lambda batches: pa.Table.from_batches(list(batches)))
    again = check_rows(found, contract.used, load_schema().to_schema())
    assert len(again.frame) == len(checked.frame)
    assert len(again.bad) == len(checked.bad), again.reasons.to_string()
