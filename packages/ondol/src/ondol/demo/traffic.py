"""Simulated traffic: the sample's customers, their requests, and the labels that arrive later."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ondol.deployment.bundle import json_value
from ondol.errors import UserError
from ondol.ingestion.sample import generate
from ondol.storage.files import publish, scratch

ROWS_IN_A_REQUEST = 10
ANSWER_SECONDS = 60.0  # a killed service is restarted within this time
Request = dict[str, Any]


def draw_week(week: int, rows: int, history: int, moved: float) -> pd.DataFrame:
    """Return the customers of a week, numbered from 1, after `history` weeks of the same size.

    Args:
        week: 1 - history … the last.
        rows: The number of customers.
        history: The number of weeks before the first.
        moved: How far customers and their behaviour have shifted; 0 means unchanged.
    """
    start = (week - 1 + history) * rows
    return pa.Table.from_batches(generate(rows, start=start, drift=moved, shift=moved)).to_pandas()


def write_table(path: Path, weeks: Sequence[pd.DataFrame]) -> None:
    """Write the given weeks as the table that the pipeline reads."""
    with scratch(path) as made:
        pd.concat(weeks, ignore_index=True).to_parquet(made, index=False)
        publish(made, path)


def send_rows(address: str, frame: pd.DataFrame, week: int, answers: Path) -> None:
    """Send all rows of a week to the service, and append each answer to the file `answers`.

    Raises:
        UserError: the service refuses one, or does not answer for a minute.
    """
    names = list(_call(f"{address}/model")["schema"]["$defs"]["Row"]["properties"])
    records = [
        {name: json_value(value) for name, value in record.items() if not pd.isna(value)}
        for record in frame[names].to_dict("records")
    ]
    starts = range(0, len(records), ROWS_IN_A_REQUEST)
    with answers.open("a", encoding="utf-8") as file:
        for start in starts:
            answer = _call(f"{address}/predict", {"rows": records[start : start + ROWS_IN_A_REQUEST]})
            file.write(json.dumps({"week": week, **answer}, ensure_ascii=False) + "\n")
            file.flush()


def wait_for_version(address: str, version: str, seconds: float = 30.0) -> None:
    """Wait until the service answers with `version`.

    Raises:
        UserError: it does not load it in time.
    """
    end = time.monotonic() + seconds
    while _call(f"{address}/model")["version"] != version:
        if time.monotonic() > end:
            raise UserError(f"The service at {address} did not load version {version} within {seconds:.0f} s.")
        time.sleep(0.2)


def _call(url: str, body: Request | None = None) -> dict[str, Any]:
    """Return the service's answer, with retries while it is down."""
    data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > end:
                message = error.read().decode(errors="replace")[:300]
                raise UserError(f"{url} answered {error.code}: {message}") from None
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > end:
                raise UserError(f"{url} does not answer: {error}.") from None
        time.sleep(0.5)
