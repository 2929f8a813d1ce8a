"""Durations, read from ISO 8601, from clock times such as "1 days 02:03:04", from seconds and from Arrow's own."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

LONGEST = 1e11  # seconds: three thousand years; the service has the same limit
PART = r"([-+]?[0-9]+(?:\.[0-9]+)?)"
ISO = rf"([-+]?)P(?=.)(?:{PART}W)?(?:{PART}D)?(?:T(?=.)(?:{PART}H)?(?:{PART}M)?(?:{PART}S)?)?"
SECONDS = (604_800, 86_400, 3_600, 60, 1)
MICROSECONDS = 1_000_000


def read_durations(values: pa.ChunkedArray) -> "pd.Series[Any]":
    """Return raw values as timedelta64[us], NaT where they are no durations; a number is one of seconds."""
    kind = values.type
    if pa.types.is_duration(kind):
        return values.cast(pa.duration("us"), safe=False).to_pandas().astype("timedelta64[us]")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _from_seconds(values.cast(pa.float64(), safe=False).to_pandas())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _from_texts(pc.utf8_trim_whitespace(values).to_pandas())
    return pd.Series(np.full(len(values), np.timedelta64("NaT", "us")))


def _from_seconds(seconds: "pd.Series[Any]") -> "pd.Series[Any]":
    known = seconds.abs().to_numpy() <= LONGEST
    whole = np.round(np.where(known, seconds, 0.0) * MICROSECONDS).astype(np.int64)
    return pd.Series(whole.astype("timedelta64[us]"), index=seconds.index).where(known)


def _from_texts(texts: "pd.Series[Any]") -> "pd.Series[Any]":
    """Read each text by itself, so that what it means never depends on its neighbours."""
    seconds = pd.to_numeric(texts, errors="coerce").astype(np.float64)
    left = seconds.isna() & texts.notna()
    if left.any():
        seconds = seconds.where(~left, _read_iso(texts[left]).reindex(texts.index))
    durations = _from_seconds(seconds)
    left &= durations.isna()
    if not left.any():
        return durations
    clocks = pd.to_timedelta(texts[left].astype(object), errors="coerce").astype("timedelta64[us]")
    return durations.where(~left, clocks.reindex(texts.index))


def _read_iso(texts: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return ISO 8601 durations as seconds; years and months, which have no one length, are not read."""
    parts = texts.astype(object).str.extract(f"^{ISO}$")
    seconds = sum(pd.to_numeric(parts[i]).fillna(0.0) * unit for i, unit in enumerate(SECONDS, start=1))
    return seconds.where(parts[0].notna()) * np.where(parts[0] == "-", -1.0, 1.0)
