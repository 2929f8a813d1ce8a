"""The data's contract: one row per customer at the end of a month. Yours to edit.

Everything else is derived from this class: validation, the service's request type, the compiled model's inputs.
`isin` closes a set (another value is a bad row, and a 4xx from the service); a plain `str` is open to new values.
"""

import pandas as pd
import pandera.pandas as pa


class Schema(pa.DataFrameModel):
    """A customer of a subscription service."""

    customer_id: int = pa.Field(unique=True, metadata={"role": "id"})
    signup_month: pd.Timestamp = pa.Field()
    age: pd.Int64Dtype = pa.Field(nullable=True, ge=0, le=120)
    region: str = pa.Field()
    plan: str = pa.Field(isin=["basic", "plus", "premium"])
    payment_method: str = pa.Field(nullable=True)
    device: str = pa.Field()
    channel: str = pa.Field()
    tenure_months: int = pa.Field(ge=0)
    monthly_fee: int = pa.Field(ge=0)  # won
    total_paid: int = pa.Field(ge=0)  # won
    support_calls: int = pa.Field(ge=0)
    late_payments: int = pa.Field(ge=0)
    data_gb: float = pa.Field(nullable=True, ge=0)
    voice_minutes: float = pa.Field(ge=0)
    autopay: bool = pa.Field()
    discount: float = pa.Field(ge=0, le=1)
    satisfaction: pd.Int64Dtype = pa.Field(nullable=True, ge=1, le=5)
    # One target for each problem; `target` in config.toml names the one that is predicted.
    churned: str = pa.Field(isin=["no", "yes"], metadata={"role": "target"})
    next_plan: str = pa.Field(isin=["basic", "plus", "premium"], metadata={"role": "target"})
    next_spend: float = pa.Field(ge=0, metadata={"role": "target"})  # won

    class Config:
        """How Pandera reads the class."""

        coerce = True
        strict = False
        metadata = None
