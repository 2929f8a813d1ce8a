"""Steps of the deploy flow: compile, verify, smoke-test and set the champion."""

from ondol.contract.schema import require_compatible
from ondol.deployment.bundle import smoke_rows
from ondol.deployment.smoke import SmokeService, require_same
from ondol.errors import Refused, UserError
from ondol.evaluation.gates import StoredVerdict, known_verdict
from ondol.evaluation.targets import load_candidate
from ondol.orchestration.reporting import publish_markdown, say
from ondol.project import Project
from ondol.registry.bundles import Bundle, drop_bundle, find_bundle
from ondol.registry.champion import Champion, move_champion, refresh_champion, restore_champion, rolled_back
from ondol.registry.registry import CHAMPION


def is_in_production(project: Project, champion: Champion | None, version: str) -> bool:
    """Return True if the version is in production with a complete bundle made by the current [deploy] settings."""
    if champion is None or champion.run_id != project.registry.run_id(version):
        return False
    bundle = find_bundle(project.store, champion.bundle)
    if bundle is None or bundle.meta.get("deploy") != project.settings.deploy.model_dump():
        return False
    say(f"Version {version} is already in production: nothing to do.")
    return True


def check_deployable(project: Project, champion: Champion | None, version: str, breaking: bool) -> None:
    """Check that the version may replace the champion.

    Raises:
        UserError: it has no verdict.
        Refused: a gate refused it, it was rolled back, or it would break the champion's callers.
    """
    require_not_rolled_back(champion, version)
    require_pass(known_verdict(project, version), version)
    require_compatible_version(project, version, champion, breaking)


def require_pass(record: StoredVerdict | None, version: str) -> None:
    """Check that a version passed its gates, by its valid verdict.

    Raises:
        UserError: there is none.
        Refused: a gate refused the version.
    """
    if record is None:
        raise UserError(
            f"Version {version} has no verdict against the current champion and gates: "
            f"run `ml evaluate {version}` first."
        )
    if record.refusal:
        raise Refused(record.refusal)


def require_not_rolled_back(champion: Champion | None, version: str) -> None:
    """Check that the version was not rolled back by hand: then the next run must not deploy it again.

    Raises:
        Refused: it was rolled back.
    """
    change = rolled_back(champion, version)
    if champion and change:
        raise Refused(
            f"Version {version} was taken out of production at {change.at} by {change.who} ({change.why}), so version "
            f'{champion.version} stays in production: `ml promote {version} --why "…"` puts it back.'
        )


def require_compatible_version(project: Project, version: str, champion: Champion | None, breaking: bool) -> None:
    """Check that the new contract does not break the champion's callers; a model of the sample has no callers.

    Raises:
        Refused: it breaks them, and `breaking` was not given.
    """
    if champion is None or breaking:
        return
    old = find_bundle(project.store, champion.bundle)
    if old is None or str(old.meta.get("source", "")).startswith("sample://"):
        return
    new = load_candidate(project.settings, version).contract
    remedy = f"type `ml deploy {version} --breaking`"
    require_compatible(old.contract, new, champion.version, version, remedy)


def discard_bundle(project: Project, bundle: Bundle) -> None:
    """Remove a bundle, unless it is in production."""
    champion = refresh_champion(project.store)
    if champion is None or champion.bundle != bundle.name:
        drop_bundle(project.store, bundle)


def smoke_test(project: Project, service: SmokeService, bundle: Bundle) -> None:
    """Send requests with known answers to the real service."""
    rows, expected = smoke_rows(project.settings, bundle)
    service.offer(bundle.path)
    require_same(service.predict({"rows": rows}), expected, project.settings.deploy.tolerance)
    say(f"The service answered {len(rows)} held-out rows as scikit-learn does.")


def set_champion(project: Project, bundle: Bundle, champion: Champion | None, why: str) -> Bundle:
    """Put the bundle into production in place of `champion` by writing `champion.json`, and return it."""
    move_champion(project.store, bundle, "deploy", why, expected=champion.bundle if champion else None)
    return bundle


def restore_previous(project: Project, champion: Champion | None, bundle: Bundle) -> None:
    """Put `champion` back into production instead of the bundle."""
    restore_champion(project.store, bundle.name, champion)


def set_mlflow_alias(project: Project, version: str) -> None:
    """Move MLflow's alias `champion`, which is a copy of `champion.json`."""
    project.registry.set_alias(CHAMPION, version)


def report_deployment(bundle: Bundle, champion: Champion | None) -> None:
    """Show the new and the previous version in production in the log and in the Prefect UI."""
    instead = f" in place of version {champion.version}" if champion else ""
    say(f"Version {bundle.version} is in production{instead}, from bundle {bundle.name}.")
    publish_markdown("champion", f"**Version {bundle.version}** is in production, from bundle `{bundle.name}`.")
