"""The sample's table: its 21 columns in Arrow, and how a drawn block becomes rows of it."""

from typing import Any

import numpy as np
import pyarrow as pa

from ondol.ingestion import customers

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


def to_batch(block: dict[str, Any], first: int) -> pa.RecordBatch:
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
