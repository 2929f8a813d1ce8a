"""The sample's customers: how one block of rows is drawn.

Every row takes the same number of draws whatever `drift` and `shift` are, so the customer in row 17 of a
drifted sample is the customer in row 17 of the plain one, moved. With drift the customers differ (younger,
newer, heavier users of data, more of them on phones and mobile payment) and the rule for the targets stays;
with shift the same customers behave otherwise (loyal ones leave too, heavy users leave, data is dear).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    need = z[0] + 0.35 * drift  # how much of everything the customer wants; seen only through usage
    age = np.clip(46 - 6 * drift + 15 * z[1] - 2 * z[0], 14, 95).astype(np.int64)
    tenure = np.minimum(50 * np.exp(-0.45 * drift) * -np.log1p(-u[0]), 239).astype(np.int64)
    observed = LAST_MONTH - (u[1] * 12).astype(np.int64)  # each customer is seen at the end of one month of a year
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
    """Draw what the customer uses, and what goes wrong."""
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
    """Draw what the customer pays, in won."""
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
    """Return for each uniform draw the position of the value it falls on."""
    table = np.array(list(shares.values()))
    weight = table[:, 0] * np.exp(table[:, 1] * drift)
    edges = np.cumsum(weight / weight.sum())[:-1]
    return np.searchsorted(edges, u, side="right").astype(np.int8)


def _count(u: Floats, mean: Floats) -> Integers:
    """Return geometric counts (0, 1, 2, …) of the given means, one from each uniform draw, at most 30."""
    return np.minimum(np.log1p(-u) / np.log(mean / (1 + mean)), 30).astype(np.int64)
