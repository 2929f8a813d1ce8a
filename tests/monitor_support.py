"""Shared parts of the monitor's tests: a store with a champion, and logs in the format of the service."""

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ondol.contract import Contract
from ondol.deployment.bundle import json_rows
from ondol.evaluation.scoring import Scorer
from ondol.ingestion.sample import generate
from ondol.registry.bundles import Bundle

START = datetime(2026, 1, 1, tzinfo=UTC)


def sample(rows: int, **parameters: Any) -> pd.DataFrame:
    """Rows of the project's sample."""
    return pa.Table.from_batches(list(generate(rows, **parameters))).to_pandas()


def predictions(scorer: Scorer, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The answers of the service."""
    classes = scorer.contract.classes
    found = scorer.predict(frame)
    if classes is None:
        return [{"value": value} for value in found.tolist()]
    names = [c if isinstance(c, str) else json.dumps(c) for c in classes]
    labels = [classes[i] for i in found.argmax(axis=1)]
    return [
        {"label": label, "probabilities": dict(zip(names, row, strict=True))}
        for label, row in zip(labels, found.tolist(), strict=True)
    ]


def records(
    bundle: str,
    rows: list[dict[str, Any]],
    answers: list[dict[str, Any]],
    at: datetime,
    together: int = 1,
    step: timedelta = timedelta(milliseconds=1),
    role: str | None = None,
) -> Iterator[str]:
    """Records of the log, in the words of contract 1, `together` rows in each; of 0.4, without a role."""
    for number, begin in enumerate(range(0, len(rows), together)):
        part = slice(begin, begin + together)
        head = {
            "id": uuid.uuid5(uuid.NAMESPACE_OID, f"{at}{begin}").hex,
            "at": (at + number * step).isoformat("T", "microseconds"),
            "version": bundle.rpartition("-")[0],
            "bundle": bundle,
            **({"role": role} if role else {}),
            "ms": round(0.4 + number % 10 / 100, 3),
        }
        body = {"request": {"rows": rows[part]}, "predictions": answers[part]}
        yield json.dumps(head | body, ensure_ascii=False) + "\n"


def write_log(
    store: Path, bundle: Bundle, frame: pd.DataFrame, at: datetime, together: int = 1, tail: str = ""
) -> list[dict[str, Any]]:
    """Write the log of the bundle's answers to `frame` (typed rows), with the id column; return the records."""
    scorer = Scorer.open(bundle.path)
    rows = json_rows(bundle.contract, frame)
    identity = bundle.contract.role("id")
    for row, value in zip(rows, frame[identity.name] if identity else [], strict=False):
        row[identity.name] = int(value)  # type: ignore[union-attr]
    path = store / "log" / f"{at:%Y%m%dT%H%M%S}-host-{uuid.uuid4().int % 10**6}-1.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = list(records(bundle.name, rows, predictions(scorer, frame), at, together))
    path.write_text("".join(lines) + tail, encoding="utf-8")
    return [json.loads(line) for line in lines]


def typed_sample(contract: Contract, rows: int, **parameters: Any) -> pd.DataFrame:
    """Rows of the sample in the contract's dtypes."""
    from ondol.contract import typed

    return typed(sample(rows, **parameters), contract.used)


def gaps(values: "pd.Series[Any]", share: float) -> "pd.Series[Any]":
    """Return values of which a share is missing."""
    return values.mask(np.arange(len(values)) < share * len(values))
