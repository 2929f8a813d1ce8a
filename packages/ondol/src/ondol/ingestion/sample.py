"""The sample that every project starts with: customers of a made-up telecom company.

`sample://?rows=5000&seed=0&drift=0&shift=0&start=0`; each part may be left out. Row i of a sample depends on
the seed, drift, shift and i alone: a longer sample begins with the shorter one, and `start` gives the rows
from there on, so weekly batches of 1,000 rows are start=0, start=1000, …

    customer_id     integer  10,000,001 + row, unique
    signup_month    date     first of a month, 2004-08 to 2025-06
    age             integer  14 to 95, 3% missing
    region          text     13 Korean cities, from 서울 (30%) to 제주 (0.8%) and 세종 (0.5%)
    plan            text     basic, plus, premium
    payment_method  text     6 values, rarest crypto (0.6%), 4% missing
    device          text     6 values, rarest e-reader (0.7%)
    channel         text     online, store, reseller, telesales
    tenure_months   integer  0 to 239
    monthly_fee     integer  won, 22,000 to 114,800
    total_paid      integer  won, 10,000 to 60,000,000 (0.5% above 2^24, which float32 cannot tell apart)
    support_calls   integer  0 to 30
    late_payments   integer  0 to 30
    data_gb         number   0 to 404, a month, 8% missing
    voice_minutes   number   0 to 2,981, a month
    autopay         boolean
    discount        number   0 to 0.45
    satisfaction    integer  1 to 5, 25% missing
    churned         text     target: no, yes (24%)
    next_plan       text     target: basic, plus, premium (46, 26 and 28%)
    next_spend      number   target: whole won, above 0, about 56,000 on average

`drift` moves the features and keeps the rule for the targets (covariate drift), `shift` changes that rule and
keeps the features (concept drift). Both go from 0 (none) to 3; 1 is plain to see, more is further away. The
bounds above hold at any drift and shift.
"""

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.csv

from ondol.errors import UserError, nearest
from ondol.ingestion.customers import draw_block
from ondol.ingestion.sample_table import SCHEMA, to_batch
from ondol.ingestion.sources import Reading

GENERATOR = 1  # raised whenever the same parameters would give other rows
BLOCK = 16_384  # rows drawn together, from one seed
MOST = {"rows": 10_000_000, "seed": 2**63 - 1, "drift": 3, "shift": 3, "start": 10**12}


@dataclass(frozen=True)
class SampleSource:
    """A sample, by its parameters (see the module)."""

    uri: str = "sample://"
    rows: int = 5_000
    seed: int = 0
    drift: float = 0.0
    shift: float = 0.0
    start: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: a parameter is out of its range.
        """
        for name, most in MOST.items():
            least, value = int(name == "rows"), getattr(self, name)
            if not (math.isfinite(value) and least <= value <= most):
                raise UserError(f'The sample\'s {name} is {value} in "{self.uri}": give {least:,} to {most:,}.')

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the 21 columns."""
        return SCHEMA

    def fingerprint(self) -> str:
        """Return the SHA-256 of the parameters and of the generator's version."""
        parts = [
            GENERATOR,
            *(float(getattr(self, name)) if name in ("drift", "shift") else getattr(self, name) for name in MOST),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows, at most `BLOCK` at a time."""
        return generate(**{name: getattr(self, name) for name in MOST})


def open_sample(uri: str, reading: Reading | None = None) -> SampleSource:
    """Return the sample that `uri` describes.

    Raises:
        UserError: a parameter is unknown, given twice, no number, or out of its range.
    """
    head, _, query = uri.partition("?")
    if head != "sample://":
        raise UserError(f'"{uri}" is no sample: write sample://, or sample://?rows=5000&seed=0 and the like.')
    values: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in MOST:
            hint = nearest(name, MOST) or f" Known: {', '.join(MOST)}."
            raise UserError(f'"{uri}" has the unknown parameter "{name}".{hint}')
        if name in values:
            raise UserError(f'"{uri}" gives {name} twice: keep one.')
        values[name] = _read_number(uri, name, text)
    return SampleSource(uri, **values)


def generate(
    rows: int = 5_000, seed: int = 0, drift: float = 0.0, shift: float = 0.0, start: int = 0
) -> Iterator[pa.RecordBatch]:
    """Yield `rows` rows of the sample from row `start` on, in batches of `SCHEMA`; see the module."""
    end = start + rows
    for block in range(start // BLOCK, -(-end // BLOCK)):
        first = block * BLOCK
        batch = to_batch(draw_block(BLOCK, seed, block, drift, shift), first)
        low, high = max(start, first), min(end, first + BLOCK)
        yield batch.slice(low - first, high - low)


def write_csv(path: Path, rows: int = 5_000, **parameters: Any) -> None:
    """Write a sample as UTF-8 CSV with a header; dates as 2024-05-01, missing values empty."""
    dated = pa.schema([f.with_type(pa.date32()) if pa.types.is_timestamp(f.type) else f for f in SCHEMA])
    options = pa.csv.WriteOptions(quoting_style="none", include_header=False)
    with Path(path).open("wb") as file:
        file.write((",".join(SCHEMA.names) + "\n").encode())
        with pa.csv.CSVWriter(file, dated, write_options=options) as writer:
            for batch in generate(rows, **parameters):
                writer.write_batch(batch.cast(dated))


def _read_number(uri: str, name: str, text: str) -> int | float:
    whole = name not in ("drift", "shift")
    if not re.fullmatch(r"-?[0-9]{1,19}" if whole else r"-?[0-9]{1,9}(\.[0-9]{1,9})?", text):
        kind = "a whole number such as 1000" if whole else "a number such as 0.5"
        raise UserError(f'"{uri}" gives {name} as "{text}": give {kind}.')
    return int(text) if whole else float(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a sample to a CSV file, by `python -m ondol.ingestion.sample OUT.csv --rows N`."""
    parser = argparse.ArgumentParser(prog="python -m ondol.ingestion.sample", description="Write the sample as CSV.")
    parser.add_argument("out", type=Path)
    for name, kind in {"rows": int, "seed": int, "drift": float, "shift": float, "start": int}.items():
        parser.add_argument(f"--{name}", type=kind, default=getattr(SampleSource, name))
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    try:
        SampleSource(**given)
        write_csv(out, **given)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
