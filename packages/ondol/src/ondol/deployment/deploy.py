"""Steps of the deploy flow: compile, verify, smoke-test, and set the champion or begin a rollout."""

from ondol.config import Strategy
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
from ondol.registry.rollout import cancel_rollout, describe_rollout, plan_steps, running_rollout, start_rollout


def is_deployed(project: Project, champion: Champion | None, version: str) -> bool:
    """Return True if the version answers requests with a complete bundle made by the current [deploy] settings.

    It is in production, or the challenger of a rollout.
    """
    run_id, rollout = project.registry.run_id(version), running_rollout(project.store)
    if rollout is not None and rollout.run_id == run_id and _is_complete(project, rollout.bundle):
        say(f"Version {version} is already in its rollout ({rollout.strategy}): nothing to do.")
        return True
    if champion is not None and champion.run_id == run_id and _is_complete(project, champion.bundle):
        say(f"Version {version} is already in production: nothing to do.")
        return True
    return False


def _is_complete(project: Project, name: str) -> bool:
    bundle = find_bundle(project.store, name)
    return bundle is not None and bundle.meta.get("deploy") == project.settings.deploy.model_dump()


def check_deployable(
    project: Project, champion: Champion | None, version: str, breaking: bool, strategy: Strategy | None = None
) -> Strategy:
    """Check that the version may replace the champion, and return how it does.

    Args:
        project: The project.
        champion: The version in production.
        version: The version to deploy.
        breaking: Whether its contract may break the champion's callers.
        strategy: The strategy chosen by hand; it may then try a version again that was withdrawn before.

    Raises:
        UserError: it has no verdict, lacks the replay that the gates ask for, or the strategy needs the prediction log,
            which is switched off.
        Refused: a gate refused it, it was removed or withdrawn, or it would break the champion's callers.
    """
    chosen = choose_strategy(project, champion, version, breaking, strategy)
    if strategy is None or chosen == "direct":
        require_not_removed(champion, version)
    record = known_verdict(project, version)
    require_pass(record, version)
    require_replay(project, record, champion)
    require_compatible_version(project, version, champion, breaking)
    return chosen


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


def require_replay(project: Project, record: StoredVerdict | None, champion: Champion | None) -> None:
    """Check that the log was replayed through a version if the gates ask for it.

    Raises:
        UserError: it was not.
    """
    if project.settings.gates.replay_days is None or champion is None or record is None:
        return
    if record.run_id != champion.run_id and record.gate("replay") is None:
        raise UserError(
            f"No requests were replayed through version {record.version} ([gates] replay_days): "
            f"run `ml replay {record.version}` first."
        )


def require_not_removed(champion: Champion | None, version: str) -> None:
    """Check that the version was neither rolled back nor withdrawn: the next run must not deploy it again.

    Raises:
        Refused: it was.
    """
    change = rolled_back(champion, version)
    if not champion or not change:
        return
    stays = f"at {change.at} by {change.who} ({change.why}), so version {champion.version} stays in production"
    if change.action == "withdraw":
        raise Refused(f"Version {version} was withdrawn {stays}: `ml rollout start {version}` tries it again.")
    back = f'`ml promote {version} --why "…"` puts it back'
    raise Refused(f"Version {version} was taken out of production {stays}: {back}.")


def choose_strategy(
    project: Project, champion: Champion | None, version: str, breaking: bool, wanted: Strategy | None
) -> Strategy:
    """Return how a version replaces the champion: `wanted`, or as `[rollout] strategy` says.

    It is direct where both cannot answer the same requests.

    Raises:
        UserError: both cannot, and a rollout is wanted; or the prediction log is switched off.
    """
    strategy = wanted or project.settings.rollout.strategy
    if strategy == "direct":
        return "direct"
    if obstacle := find_obstacle(project, champion, version, breaking):
        if wanted:
            raise UserError(f"Version {version} cannot be tried beside another one: {obstacle}.")
        say(f"Version {version} is deployed directly: {obstacle}.")
        return "direct"
    if not project.settings.log.enabled:
        raise UserError(
            f'The strategy is "{strategy}", and [log] enabled is false: a rollout is judged by the prediction log, so '
            'enable it, or set [rollout] strategy = "direct".'
        )
    return strategy


def find_obstacle(project: Project, champion: Champion | None, version: str, breaking: bool) -> str | None:
    """Return why a version and the champion cannot answer the same requests; None if they can."""
    if champion is None:
        return "no model is in production"
    if champion.version == version:
        return "it is in production, with other settings of [deploy]"
    if breaking:
        return "with --breaking, it answers other requests than the version in production"
    old = find_bundle(project.store, champion.bundle)
    if old is None:
        return f"the bundle in production, {champion.bundle}, is missing or was changed"
    if has_callers(old):  # else its contract was checked
        return None
    new = load_candidate(project.settings, version).contract
    try:
        require_compatible(old.contract, new, champion.version, version, "")
    except Refused:
        return "the version in production is of the sample, and answers other requests"
    return None


def has_callers(bundle: Bundle) -> bool:
    """Return True if requests may depend on the contract of a bundle; a model of the sample has no callers."""
    return not str(bundle.meta.get("source", "")).startswith("sample://")


def require_compatible_version(project: Project, version: str, champion: Champion | None, breaking: bool) -> None:
    """Check that the new contract does not break the champion's callers.

    Raises:
        Refused: it breaks them, and `breaking` was not given.
    """
    if champion is None or breaking:
        return
    old = find_bundle(project.store, champion.bundle)
    if old is None or not has_callers(old):
        return
    new = load_candidate(project.settings, version).contract
    remedy = f"type `ml deploy {version} --breaking`"
    require_compatible(old.contract, new, champion.version, version, remedy)


def discard_bundle(project: Project, bundle: Bundle) -> None:
    """Remove a bundle, unless it is in production or in a rollout."""
    champion, rollout = refresh_champion(project.store), running_rollout(project.store)
    if bundle.name not in {one.bundle for one in (champion, rollout) if one}:
        drop_bundle(project.store, bundle)


def smoke_test(project: Project, service: SmokeService, bundle: Bundle) -> None:
    """Send requests with known answers to the real service."""
    rows, expected = smoke_rows(project.settings, bundle)
    service.offer(bundle.path)
    answer = service.predict({"rows": rows})
    require_same(answer, expected, project.settings.deploy.tolerance, bundle.contract.decision)
    say(f"The service answered {len(rows)} held-out rows as scikit-learn does.")


def release_bundle(project: Project, bundle: Bundle, champion: Champion | None, strategy: Strategy, why: str) -> Bundle:
    """Put the bundle into production in place of `champion`, or begin its rollout, and return it."""
    if champion is None or strategy == "direct":
        move_champion(project.store, bundle, "deploy", why, expected=champion.bundle if champion else None)
    else:
        plan = plan_steps(project.settings.rollout, strategy)
        start_rollout(project.store, bundle, champion, strategy, plan, why)
    return bundle


def restore_previous(project: Project, champion: Champion | None, bundle: Bundle) -> None:
    """Put `champion` back into production instead of the bundle, or cancel the bundle's rollout."""
    cancel_rollout(project.store, bundle.name)
    restore_champion(project.store, bundle.name, champion)


def set_mlflow_alias(project: Project, bundle: Bundle) -> None:
    """Move MLflow's alias `champion`, which is a copy of `champion.json`, if the bundle is in production."""
    champion = project.champion
    if champion is not None and champion.bundle == bundle.name:
        project.registry.set_alias(CHAMPION, bundle.version)


def report_deployment(project: Project, bundle: Bundle, champion: Champion | None) -> None:
    """Show what answers now, and what did before, in the log and in the Prefect UI."""
    rollout = running_rollout(project.store)
    if rollout and rollout.bundle == bundle.name:
        say(describe_rollout(rollout))
        publish_markdown("rollout", describe_rollout(rollout))
        return
    instead = f" in place of version {champion.version}" if champion else ""
    say(f"Version {bundle.version} is in production{instead}, from bundle {bundle.name}.")
    publish_markdown("champion", f"**Version {bundle.version}** is in production, from bundle `{bundle.name}`.")
