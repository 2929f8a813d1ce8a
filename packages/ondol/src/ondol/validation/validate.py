"""Steps of the validate flow: quarantine invalid rows of a snapshot with their reasons."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from ondol.config import Settings
from ondol.contract import (
    Checked,
    Checks,
    Column,
    Contract,
    check_rows,
    clean,
    load_checks,
    require_columns,
)
from ondol.contract.checking import clean_column, find_repeats, hash_rows, unique_sets
from ondol.errors import UserError
from ondol.orchestration.reporting import publish_markdown, publish_table, say, track
from ondol.project import Project
from ondol.snapshots.snapshots import Block, Snapshots
from ondol.storage.files import SHORT, digest_file, digest_json
from ondol.validation.results import Validation

GRAMMAR = 2  # increased whenever the same cells are read as other values
LOGGED = 5  # reasons that the run's log lists
CHECKED = "check"  # the entry of `Latest` for the validation used last, also if its bad share is refused


def validate_rows(project: Project, snapshot: str) -> Validation:
    """Return the validation of a snapshot with the current contract, computed unless it exists."""
    return find_or_validate(project, project.snapshots.get(snapshot).digest)


def find_or_validate(project: Project, digest: str) -> Validation:
    """Return the validation of a snapshot, computed unless it exists, and record it as the one used last."""
    name, validations = validation_id(project.settings, digest), project.validations
    known = validations.find(name) if validations.has_rows(name) else None
    found = known or validate_snapshot(project, digest, name)
    project.latest.set(CHECKED, found.id)
    return found


def validation_id(settings: Settings, digest: str) -> str:
    """Return the id of the validation of a snapshot with the current contract."""
    schema = digest_file(settings.root / "model" / "schema.py")
    parts = [schema, settings.data.target, settings.data.problem, settings.data.date_formats, GRAMMAR]
    contract = digest_json(parts)
    return f"{digest[:SHORT]}-{contract[:SHORT]}"


def validate_snapshot(project: Project, digest: str, name: str) -> Validation:
    """Check every row of a snapshot, a row group at a time, and write the quarantine and the record."""
    contract, snapshots = project.contract, project.snapshots
    schema = snapshots.schema(digest)
    require_columns(schema.names, contract.used)
    checks = load_checks()
    repeats = _find_repeats(snapshots, digest, contract, checks)
    counts: Counter[str] = Counter()
    rows = bad = unlabelled = 0
    with project.validations.quarantine(name, schema) as quarantine:
        for block in track(snapshots.blocks(digest), "rows checked", snapshots.get(digest).rows):
            checked, bare = _check_block(block, contract, checks, repeats).without_unlabelled(contract.target)
            unlabelled += len(bare)
            if len(checked.reasons):
                numbers = checked.bad
                failed = checked.reasons["column"] + ": " + checked.reasons["check"]
                counts.update(failed.value_counts(sort=False).to_dict())
                quarantine.add(block.read_alike().take(pa.array(numbers)), block.start + numbers, checked.sentences())
                bad += len(numbers)
            rows += block.rows
        counted = {"rows": rows, "bad": bad, "unlabelled": unlabelled, "reasons": dict(counts.most_common())}
        return quarantine.finish(Validation(id=name, snapshot=digest, **counted))


def _find_repeats(
    snapshots: Snapshots, digest: str, contract: Contract, checks: Checks
) -> dict[tuple[str, ...], np.ndarray]:
    """Return the numbers of rows that repeat an earlier row, for each set of columns that must be unique.

    Rows without a label are ignored.
    """
    sets = {
        names: [contract.column(name) for name in names]
        for names in unique_sets(checks, [c.name for c in contract.used])
    }
    require_columns(snapshots.schema(digest).names, [column for columns in sets.values() for column in columns])
    if not sets:
        return {}
    labelled = list(_find_labels(snapshots, digest, contract))
    numbers = np.flatnonzero(np.concatenate(labelled))
    found = {}
    for names, columns in sets.items():
        blocks = zip(hash_blocks(snapshots, digest, columns), labelled, strict=True)
        found[names] = numbers[find_repeats(hashes if mask.all() else hashes[mask] for hashes, mask in blocks)]
    return found


def hash_blocks(snapshots: Snapshots, digest: str, columns: Sequence[Column]) -> Iterator[np.ndarray]:
    """Yield hashes of a snapshot's rows in `columns`, a row group at a time."""
    for block in snapshots.blocks(digest):
        yield hash_rows(clean(block.read([c.name for c in columns]), columns)[0])


def _find_labels(snapshots: Snapshots, digest: str, contract: Contract) -> Iterator[np.ndarray]:
    """Yield masks of a snapshot's rows with a label, even an unreadable one, a row group at a time."""
    for block in snapshots.blocks(digest):
        values, unreadable = clean_column(block.read([contract.target]).column(contract.target), contract.target_column)
        yield values.notna().to_numpy() | unreadable


def _check_block(
    block: Block, contract: Contract, checks: Checks, repeats: Mapping[tuple[str, ...], np.ndarray]
) -> Checked:
    """Check the rows of one block; rows are numbered from its start."""
    checked = check_rows(block.read([c.name for c in contract.used]), contract.used, checks)
    for names, rows in repeats.items():
        first, last = np.searchsorted(rows, [block.start, block.start + block.rows])
        checked = checked.with_repeats(names, rows[first:last] - block.start)
    return checked


def check_bad_share(project: Project, validation: Validation) -> None:
    """Check that no more rows are bad than `max_bad_share` allows.

    Raises:
        UserError: more are; names the columns and checks.
    """
    if not validation.labelled:
        raise UserError(
            f'None of the {validation.rows:,} rows has a value of the target "{project.contract.target}": there is '
            "nothing to train on; wait for labels, or choose another target."
        )
    settings = project.settings
    if validation.bad_share <= settings.data.max_bad_share and validation.bad < validation.labelled:
        return
    worst = "; ".join(f"{reason} ({count:,} rows)" for reason, count in list(validation.reasons.items())[:5])
    where = settings.show(project.validations.find_rows(validation.id))
    raise UserError(
        f"{validation.bad:,} of {validation.labelled:,} rows ({validation.bad_share:.1%}) break the contract, more "
        f"than max_bad_share = {settings.data.max_bad_share:.0%} allows: {worst}. They are in {where}: correct the "
        "data or model/schema.py."
    )


def report_validation(validation: Validation) -> None:
    """Show the numbers of valid and quarantined rows, and the reasons, in the log and in the Prefect UI."""
    say(f"{validation.rows - validation.bad:,} rows are valid, {validation.bad:,} are quarantined.")
    for reason, rows in list(validation.reasons.items())[:LOGGED]:
        say(f"{rows:,} rows are quarantined by {reason}.")
    publish_markdown("validation", f"**{validation.describe()}**.")
    if validation.reasons:
        publish_table("quarantine", [{"reason": reason, "rows": n} for reason, n in validation.reasons.items()])
