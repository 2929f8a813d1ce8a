"""The sample of a new project: customers of an invented telecom company.

`sample://?rows=5000&seed=0&drift=0&shift=0&start=0`; each part may be left out. Row i of a sample depends only on seed,
drift, shift and i: a longer sample begins with the shorter one, and `start` skips rows, so weekly batches of 1,000 rows
are start=0, start=1000, …

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
keeps the features (concept drift). Both range from 0 (none) to 3; 1 is a clear change. The
bounds above hold at any drift and shift.

Every row takes the same number of random draws, so the customer in row 17 of a drifted sample is the customer in row
17 of the plain one, moved. With `drift` the customers differ (younger, newer, heavier users of data, more of them on
phones and mobile payment) and the rule for the targets stays; with `shift` the same customers behave differently
(loyal ones leave too, heavy users leave, data is expensive).
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

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from ondol.errors import UserError, nearest
from ondol.ingestion import sample as customers
from ondol.ingestion.sources import Reading

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Codes = NDArray[np.int8]

# Each open or closed set: value -> (share, growth of its log-share per unit of drift).
REGION = {
    "서울": (0.300, 0.5),
    "부산": (0.130, -0.5),
    "인천": (0.110, 0.3),
    "대구": (0.095, -0.6),
    "대전": (0.075, 0.0),
    "광주": (0.070, -0.4),
    "수원": (0.070, 0.7),
    "울산": (0.050, -0.6),
    "창원": (0.040, -0.6),
    "춘천": (0.030, 0.0),
    "전주": (0.017, 0.0),
    "제주": (0.008, 1.0),
    "세종": (0.005, 1.5),
}
PAYMENT = {
    "credit card": (0.520, -0.4),
    "bank transfer": (0.270, -0.5),
    "mobile pay": (0.160, 1.2),
    "gift card": (0.030, 0.0),
    "post office": (0.014, -0.5),
    "crypto": (0.006, 1.0),
}
DEVICE = {
    "phone": (0.640, 0.2),
    "tablet": (0.180, -0.6),
    "laptop": (0.130, -0.6),
    "foldable": (0.030, 1.8),
    "smartwatch": (0.013, 1.2),
    "e-reader": (0.007, -1.0),
}
CHANNEL = {
    "online": (0.460, 0.5),
    "store": (0.300, -0.6),
    "reseller": (0.160, 0.5),
    "telesales": (0.080, -0.8),
}
PLAN = ("basic", "plus", "premium")
CHURNED = ("no", "yes")
LAST_MONTH = 2025 * 12 + 5  # June 2025, counted from year 0
BASE_FEE = np.array([22_000.0, 45_000.0, 85_000.0])  # won a month
ALLOWANCE = np.array([5.0, 15.0, 60.0])  # GB a month


def draw_block(rows: int, seed: int, block: int, drift: float, shift: float) -> dict[str, Any]:
    """Draw the rows of one block.

    Returns:
        Arrays of length `rows` by name: texts as codes into the constants of this module, numbers as they
        are, dates as months since 1970-01; `missing` holds, by column, which values are unknown.
    """
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, block))))
    u = rng.random((18, rows))
    z = rng.standard_normal((8, rows))
    block_of = _draw_person(u, z, drift)
    block_of |= _draw_usage(block_of, u, z, drift)
    block_of |= _draw_money(block_of, u, z)
    block_of |= _draw_targets(block_of, u, z, shift)
    block_of["missing"] = {
        "age": u[14] < 0.03,
        "payment_method": u[15] < 0.04,
        "data_gb": u[16] < 0.08,
        "satisfaction": u[17] < 0.25,
    }
    return block_of


def _draw_person(u: Floats, z: Floats, drift: float) -> dict[str, Any]:
    """Draw who the customer is, and since when."""
    need = z[0] + 0.35 * drift  # demand of the customer; visible only through usage
    age = np.clip(46 - 6 * drift + 15 * z[1] - 2 * z[0], 14, 95).astype(np.int64)
    tenure = np.minimum(50 * np.exp(-0.45 * drift) * -np.log1p(-u[0]), 239).astype(np.int64)
    observed = LAST_MONTH - (u[1] * 12).astype(np.int64)  # each customer is observed at the end of one month of a year
    wish = need + 0.9 * z[2]
    return {
        "need": need,
        "age": age,
        "tenure_months": tenure,
        "signup_month": observed - tenure - 1970 * 12,
        "plan": (wish > 0.0).astype(np.int8) + (wish > 1.15),
        "region": _choose(REGION, u[2], drift),
        "payment_method": _choose(PAYMENT, u[3], drift),
        "device": _choose(DEVICE, u[4], drift),
        "channel": _choose(CHANNEL, u[5], drift),
        "autopay": u[6] < 0.58 + 0.12 * np.tanh(drift),
    }


def _draw_usage(person: dict[str, Any], u: Floats, z: Floats, drift: float) -> dict[str, Any]:
    """Draw the customer's usage and problems."""
    log_data = 1.9 + 0.75 * person["need"] - 0.012 * (person["age"] - 46) + 0.45 * z[3] + 0.2 * drift
    calls = _count(u[7], np.exp(0.25 - 0.25 * person["autopay"] + 0.25 * drift))
    late = _count(u[8], np.where(person["autopay"], 0.25, 0.9))
    mood = 3.6 - 0.35 * calls - 0.3 * (person["channel"] == 2) + 0.75 * z[4]
    return {
        "log_data": log_data,
        "data_gb": np.round(np.exp(np.minimum(log_data, 6.0)), 2),
        "voice_minutes": np.round(
            np.exp(np.minimum(4.6 + 0.02 * (person["age"] - 46) + 0.6 * z[5] - 0.2 * drift, 8)), 1
        ),
        "support_calls": calls,
        "late_payments": late,
        "satisfaction": np.clip(np.rint(mood), 1, 5).astype(np.int64),
    }


def _draw_money(row: dict[str, Any], u: Floats, z: Floats) -> dict[str, Any]:
    """Draw the customer's payments, in won."""
    extras = 1_100.0 * np.floor(9 * u[9] * u[9]) + np.array([8_000.0, 4_000, 6_000, 21_000, 3_000, 0])[row["device"]]
    fee = BASE_FEE[row["plan"]] + extras
    discount = np.where(u[10] < 0.55, 0.0, np.round(0.05 + 0.4 * (u[10] - 0.55) / 0.45, 2))
    paid = fee * (1 - discount * 0.6) * (row["tenure_months"] + 1) * np.exp(0.08 * z[6]) + 9_999 * u[11]
    return {"monthly_fee": fee.astype(np.int64), "discount": discount, "total_paid": paid.astype(np.int64)}


def _draw_targets(row: dict[str, Any], u: Floats, z: Floats, shift: float) -> dict[str, Any]:
    """Draw the three targets from the features, by rules that `shift` changes."""
    years, data = row["tenure_months"] / 12, (row["log_data"] - 1.9) / 0.9
    price = row["monthly_fee"] * (1 - row["discount"]) / 50_000
    plan = row["plan"].astype(np.float64)
    leave = (
        -0.6
        + (0.9 * shift - 1.3) * np.log1p(years)
        + 0.65 * np.minimum(row["support_calls"], 6)
        + 0.55 * np.minimum(row["late_payments"], 5)
        + 1.5 * (price - 1)
        - 0.7 * (row["satisfaction"] - 3)
        + (0.9 * shift - 0.4) * row["autopay"]
        + 1.3 * shift * (data - 0.2)
        + 0.9 * (row["tenure_months"] % 24 >= 21)  # the contract ends
        + 0.6 * (row["channel"] == 2) * (row["age"] < 40)
        - 1.6 * shift
    )
    move = (0.9 - 0.3 * shift) * plan + (1.0 - 0.7 * shift) * data + (0.35 + 0.4 * shift) * (row["satisfaction"] - 3)
    move += (1.5 + shift) * row["discount"] - 0.02 * (row["age"] - 46) * (1 - 1.5 * shift) + 0.5 * z[7]
    over = np.maximum(row["data_gb"] - ALLOWANCE[row["plan"]], 0)
    spend = row["monthly_fee"] * (1 - row["discount"]) + (2_400 + 2_000 * shift) * np.minimum(over, 40)
    spend += (30 + 70 * shift) * row["voice_minutes"] + 3_000 * row["late_payments"]
    return {
        "churned": (u[12] < 1 / (1 + np.exp(-1.1 * leave))).astype(np.int8),
        "next_plan": (move > 0.6 - 0.3 * shift).astype(np.int8) + (move > 1.9 - 0.6 * shift),
        "next_spend": np.rint(spend * np.exp(0.35 * (u[13] - 0.5) + 0.1 * z[6])),
    }


def _choose(shares: dict[str, tuple[float, float]], u: Floats, drift: float) -> Codes:
    """Return the position of the chosen value for each uniform draw."""
    table = np.array(list(shares.values()))
    weight = table[:, 0] * np.exp(table[:, 1] * drift)
    edges = np.cumsum(weight / weight.sum())[:-1]
    return np.searchsorted(edges, u, side="right").astype(np.int8)


def _count(u: Floats, mean: Floats) -> Integers:
    """Return geometric counts (0, 1, 2, …) of the given means, one from each uniform draw, at most 30."""
    return np.minimum(np.log1p(-u) / np.log(mean / (1 + mean)), 30).astype(np.int64)


FIRST_ID = 10_000_001

SCHEMA = pa.schema(
    [
        ("customer_id", pa.int64()),
        ("signup_month", pa.timestamp("us")),
        ("age", pa.int64()),
        ("region", pa.string()),
        ("plan", pa.string()),
        ("payment_method", pa.string()),
        ("device", pa.string()),
        ("channel", pa.string()),
        ("tenure_months", pa.int64()),
        ("monthly_fee", pa.int64()),
        ("total_paid", pa.int64()),
        ("support_calls", pa.int64()),
        ("late_payments", pa.int64()),
        ("data_gb", pa.float64()),
        ("voice_minutes", pa.float64()),
        ("autopay", pa.bool_()),
        ("discount", pa.float64()),
        ("satisfaction", pa.int64()),
        ("churned", pa.string()),
        ("next_plan", pa.string()),
        ("next_spend", pa.float64()),
    ]
)
TEXTS = {
    name: pa.array(list(values), pa.string())
    for name, values in {
        "region": customers.REGION,
        "plan": customers.PLAN,
        "payment_method": customers.PAYMENT,
        "device": customers.DEVICE,
        "channel": customers.CHANNEL,
        "churned": customers.CHURNED,
        "next_plan": customers.PLAN,
    }.items()
}


def block_to_batch(block: dict[str, Any], first: int) -> pa.RecordBatch:
    """Return a drawn block as Arrow columns."""
    block["customer_id"] = np.arange(FIRST_ID + first, FIRST_ID + first + len(block["age"]))
    block["signup_month"] = block["signup_month"].astype("datetime64[M]").astype("datetime64[us]")
    missing, arrays = block["missing"], []
    for field in SCHEMA:
        if field.name in TEXTS:
            codes = pa.array(block[field.name], mask=missing.get(field.name))
            arrays.append(TEXTS[field.name].take(codes))
        else:
            arrays.append(pa.array(block[field.name], field.type, mask=missing.get(field.name)))
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


GENERATOR = 1  # increased whenever the same parameters give different rows
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
        raise UserError(f'"{uri}" is not a sample: write sample://, or parameters as in sample://?rows=5000&seed=0.')
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
        batch = block_to_batch(draw_block(BLOCK, seed, block, drift, shift), first)
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
