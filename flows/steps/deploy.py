"""Deploy: a candidate that passed its gates is compiled, proved, tried and put into service, or nothing changes."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.transactions import Transaction, get_transaction, transaction

from flows.artifacts import publish_markdown
from flows.bundling import build_bundle, smoke_rows
from flows.candidate import load_candidate
from flows.contract.compatibility import breaking_changes
from flows.errors import Refused, UserError
from flows.evaluate import known_verdict
from flows.naming import name_run
from flows.progress import say
from flows.settings import Settings, load_settings
from flows.smoke import SmokeService, require_same, smoke_service
from flows.stage import stage
from flows.store.bentoml import forget_bundle, import_bundle
from flows.store.bundles import Bundle, drop_bundle, find_bundle
from flows.store.champion import Champion, alert_new_champion, move_champion, read_champion, restore_champion, taken_out
from flows.store.reach import look_again
from flows.store.validations import Latest
from flows.store.verdicts import Record
from flows.tracking import CHAMPION, Registry, repair_alias


@stage(timeout_hours=3)
def deploy(version: str | None = None, breaking: bool = False, why: str = "passed its gates") -> str:
    """Put a version (default: the latest candidate) into service; return it.

    Args:
        version: A registered version whose verdict is a pass; empty for the latest candidate.
        breaking: Deploy even if the request or answer changes for those who call the service.
        why: What the history will say.

    Raises:
        UserError: it cannot be compiled, differs from scikit-learn, or fails the smoke test; all is as it was.
        Refused: it did not pass its gates.
    """
    settings = load_settings()
    chosen = version or Latest(settings.store_path).get("train")
    champion = read_champion(settings.store_path)
    name_run("deploy", version=chosen, data=Registry(settings).get(chosen).tags.get("data_digest"))
    repair_alias(settings)
    if not serves_already(settings, champion, chosen):
        require_not_taken_out(champion, chosen)
        require_pass(known_verdict(settings, chosen), chosen)
        require_compatible(settings, chosen, champion, breaking)
        with smoke_service(settings) as service, transaction():
            bundle = write(chosen)
            keep(bundle)
            smoke(service, bundle)
            name(bundle, champion, why)
            label(chosen)
        instead = f" in place of version {champion.version}" if champion else ""
        say(f"Version {chosen} is in service{instead}, from bundle {bundle.name}.")
        publish_markdown("champion", f"**Version {chosen}** serves, from bundle `{bundle.name}`.")
    else:
        say(f"Version {chosen} is in service already: nothing is to be done.")
    alert_new_champion(settings)
    return chosen


def serves_already(settings: Settings, champion: Champion | None, version: str) -> bool:
    """Tell whether the version serves, from a bundle that is whole and made under the present [deploy] settings."""
    if champion is None or champion.run_id != Registry(settings).run_id(version):
        return False
    bundle = find_bundle(settings.store_path, champion.bundle)
    return bundle is not None and bundle.meta.get("deploy") == settings.deploy.model_dump()


def require_pass(record: Record | None, version: str) -> None:
    """Check that the verdict that stands on a version is a pass.

    Raises:
        UserError: none stands.
        Refused: it is a refusal.
    """
    if record is None:
        raise UserError(
            f"Version {version} has no verdict under what now serves and the gates as they are set: "
            f"run `ml evaluate {version}` first."
        )
    if record.refusal:
        raise Refused(record.refusal)


def require_not_taken_out(champion: Champion | None, version: str) -> None:
    """Check that nobody took the version out of service: the next run must not bring it back.

    Raises:
        Refused: somebody did.
    """
    change = taken_out(champion, version)
    if champion and change:
        raise Refused(
            f"Version {version} was taken out of service at {change.at} by {change.who} ({change.why}), so version "
            f'{champion.version} stays in service: `ml promote {version} --why "…"` puts it back.'
        )


def require_compatible(settings: Settings, version: str, champion: Champion | None, breaking: bool) -> None:
    """Check that callers of the champion can go on as they are; nobody calls a model of the sample.

    Raises:
        Refused: they cannot, and `breaking` was not given.
    """
    if champion is None or breaking:
        return
    old = find_bundle(settings.store_path, champion.bundle)
    if old is None or str(old.meta.get("source", "")).startswith("sample://"):
        return
    changes = breaking_changes(old.contract, load_candidate(settings, version).contract)
    if changes:
        raise Refused(
            f"Version {champion.version} stays in service: the new contract would break its callers "
            f"({'; '.join(changes)}). "
            "Tell them, then run again with --breaking."
        )


@task(name="bundle", cache_policy=NO_CACHE)
def write(version: str) -> Bundle:
    """Compile, prove parity on the whole holdout, and write the bundle."""
    bundle = build_bundle(load_settings(), version)
    _remember("bundle", bundle)
    rows = bundle.meta["parity"]["rows"]
    equal = f", equal to scikit-learn on {rows:,} held-out rows" if rows else ""
    say(f"Version {version} is compiled{equal}: bundle {bundle.name}.")
    return bundle


@write.on_rollback
def _unwrite(txn: Transaction) -> None:
    bundle, store = txn.get("bundle"), load_settings().store_path
    look_again(store / "champion.json")
    champion = read_champion(store)
    if champion is None or champion.bundle != bundle.name:  # what serves is never removed
        drop_bundle(bundle)


@task(name="bentoml-import", cache_policy=NO_CACHE)
def keep(bundle: Bundle) -> None:
    """Import the bundle into BentoML's store."""
    _remember("tag", import_bundle(bundle))


@keep.on_rollback
def _drop(txn: Transaction) -> None:
    forget_bundle(txn.get("tag"))


@task(name="smoke-test", cache_policy=NO_CACHE)
def smoke(service: SmokeService, bundle: Bundle) -> None:
    """Ask the real service for predictions whose answers are known."""
    settings = load_settings()
    rows, expected = smoke_rows(settings, bundle)
    service.offer(bundle.path)
    require_same(service.predict({"rows": rows}), expected, settings.deploy.tolerance)
    say(f"The service answered {len(rows)} held-out rows as scikit-learn does.")


@task(name="champion", cache_policy=NO_CACHE)
def name(bundle: Bundle, before: Champion | None, why: str) -> None:
    """Name the bundle in `champion.json`: from here on it serves.

    The move is the last thing done: Prefect calls a task's rollback hook only where the task itself succeeded.
    """
    _remember("before", before)
    _remember("bundle", bundle)
    move_champion(load_settings().store_path, bundle, "deploy", why, expected=before.bundle if before else None)


@name.on_rollback
def _unname(txn: Transaction) -> None:
    restore_champion(load_settings().store_path, txn.get("bundle"), txn.get("before"))


@task(name="alias", cache_policy=NO_CACHE)
def label(version: str) -> None:
    """Move MLflow's alias `champion`, a copy of what `champion.json` says."""
    Registry(load_settings()).set_alias(CHAMPION, version)


def _remember(key: str, value: Any) -> None:
    """Keep what the task's rollback hook needs."""
    current = get_transaction()
    if current is not None:
        current.set(key, value)
