"""Validate: the rows of a snapshot that break the contract go to quarantine, each with its reasons."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.alerts import tell_of_failure
from flows.artifacts import publish_markdown, publish_table
from flows.contract import Checked, check_rows, load_contract, load_schema
from flows.errors import UserError
from flows.exclusive import exclusive
from flows.naming import SHORT, name_run
from flows.settings import Settings, load_settings
from flows.store.files import digest_file, digest_json
from flows.store.snapshots import Snapshots
from flows.store.validations import Latest, Validation, Validations


@flow(
    name="validate",
    flow_run_name="validate",
    timeout_seconds=3 * 3600,
    on_failure=[tell_of_failure],
    on_crashed=[tell_of_failure],
)
@exclusive
def validate(snapshot: str | None = None) -> str:
    """Hold a snapshot (default: the latest) against `model/schema.py`; return the validation's id.

    Args:
        snapshot: A snapshot's digest; empty for the latest.

    Raises:
        UserError: a column is missing, or more rows are bad than `max_bad_share` allows.
    """
    settings = load_settings()
    validation = check_snapshot(snapshot or Latest(settings.store_path).get("ingest"))
    name_run("validate", data=validation.snapshot)
    report(validation)
    require_share(settings, validation)
    Latest(settings.store_path).set("validate", validation.id)
    return validation.id


@task(name="check", cache_policy=NO_CACHE)
def check_snapshot(digest: str) -> Validation:
    """Return the validation of a snapshot, made unless this contract has judged it before."""
    settings = load_settings()
    snapshot = Snapshots(settings.store_path).get(digest)
    name = validation_id(settings, snapshot.digest)
    return Validations(settings.store_path).find(name) or validate_snapshot(settings, snapshot.digest, name)


def validation_id(settings: Settings, digest: str) -> str:
    """Name the pair of a snapshot and the contract as it stands now."""
    schema = digest_file(settings.root / "model" / "schema.py")
    contract = digest_json([schema, settings.data.target, settings.data.problem])
    return f"{digest[:SHORT]}-{contract[:SHORT]}"


def validate_snapshot(settings: Settings, digest: str, name: str) -> Validation:
    """Check every row of a snapshot and write the quarantine and the record."""
    contract = load_contract(settings)
    path = Snapshots(settings.store_path).path(digest)
    table = pq.read_table(path, columns=[c.name for c in contract.used if c.name in pq.read_schema(path).names])
    checked = check_rows(table, contract.used, load_schema().to_schema())
    bad = checked.bad
    counts = (checked.reasons["column"] + ": " + checked.reasons["check"]).value_counts()
    validation = Validation(
        id=name, snapshot=digest, rows=len(table), bad=len(bad), reasons={str(k): int(v) for k, v in counts.items()}
    )
    rows = pq.read_table(path).take(pa.array(bad)) if len(bad) else pq.read_schema(path).empty_table()
    Validations(settings.store_path).write(validation, rows, bad, _sentences(checked, bad))
    return validation


def require_share(settings: Settings, validation: Validation) -> None:
    """Check that no more rows are bad than `max_bad_share` allows.

    Raises:
        UserError: more are; says which columns and checks.
    """
    if validation.bad_share <= settings.data.max_bad_share and validation.bad < validation.rows:
        return
    worst = "; ".join(f"{reason} ({count:,} rows)" for reason, count in list(validation.reasons.items())[:5])
    where = settings.show(Validations(settings.store_path).rows_path(validation.id))
    raise UserError(
        f"{validation.bad:,} of {validation.rows:,} rows ({validation.bad_share:.1%}) break the contract, more than "
        f"max_bad_share = {settings.data.max_bad_share:.0%} allows: {worst}. They are in {where}: mend the data or "
        "model/schema.py."
    )


@task(name="report", cache_policy=NO_CACHE)
def report(validation: Validation) -> None:
    """Show in the Prefect UI how many rows were kept and why others were not."""
    kept = validation.rows - validation.bad
    publish_markdown(
        "validation", f"**{kept:,} rows kept, {validation.bad:,} quarantined** ({validation.bad_share:.2%})."
    )
    if validation.reasons:
        publish_table("quarantine", [{"reason": reason, "rows": n} for reason, n in validation.reasons.items()])


def _sentences(checked: Checked, bad: np.ndarray) -> list[list[str]]:
    """Return for each bad row its reasons as sentences."""
    reasons = checked.reasons
    texts = reasons["column"] + " = " + reasons["value"].fillna("missing") + ": " + reasons["check"]
    grouped = pd.Series(texts.to_numpy(), index=reasons["row"]).groupby(level=0, sort=True).agg(list)
    return grouped.reindex(bad).tolist()
