"""Deploy: a candidate that passed its gates is put into production or tried beside the champion, or nothing changes."""

from functools import partial

from prefect.transactions import transaction

from ondol.config import Strategy
from ondol.deployment import (
    build_bundle,
    check_deployable,
    discard_bundle,
    import_bundle,
    is_deployed,
    release_bundle,
    remove_imported_bundle,
    report_deployment,
    restore_previous,
    set_mlflow_alias,
    smoke_service,
    smoke_test,
)
from ondol.orchestration import name_run, stage, task
from ondol.project import open_project
from ondol.registry import alert_new_champion, repair_mlflow_alias


@stage(timeout_hours=3)
def deploy(
    version: str | None = None, breaking: bool = False, why: str = "passed its gates", strategy: Strategy | None = None
) -> str:
    """Put a version (default: the latest candidate) into production, or start its rollout; return it.

    Args:
        version: A registered version whose verdict is a pass; empty for the latest candidate.
        breaking: Deploy even if the request or answer changes for those who call the service.
        why: What the history will say.
        strategy: How it replaces the champion; empty for `[rollout] strategy`.

    Raises:
        UserError: it cannot be compiled, differs from scikit-learn, or fails the smoke test; all is as it was.
        Refused: it did not pass its gates.
    """
    project = open_project()
    version = version or project.latest.get("train")
    champion = project.champion
    name_run("deploy", version=version, data=project.registry.get(version).tags.get("data_digest"))
    repair_mlflow_alias(project)
    if not is_deployed(project, champion, version):
        chosen = task(check_deployable)(project, champion, version, breaking, strategy)
        with smoke_service(project) as service, transaction():
            bundle = task(build_bundle, undo=partial(discard_bundle, project))(project, version)
            task(import_bundle, undo=remove_imported_bundle)(bundle)
            task(smoke_test)(project, service, bundle)
            undo = partial(restore_previous, project, champion)
            task(release_bundle, undo=undo)(project, bundle, champion, chosen, why)
            task(set_mlflow_alias)(project, bundle)
        report_deployment(project, bundle, champion)
    alert_new_champion(project)
    return version
