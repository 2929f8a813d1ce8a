"""Evaluate: candidate and champion are scored on the same held-out rows, and the gates decide."""

from ondol.evaluation import check_gates, evaluate_candidate, find_verdict, log_verdict, score_holdout
from ondol.orchestration import name_run, stage, task
from ondol.project import open_project


@stage(timeout_hours=3)
def evaluate(version: str | None = None) -> str:
    """Evaluate a version (default: the latest candidate) against the champion; return it if it passed.

    Args:
        version: A registered version; empty for the latest candidate.

    Raises:
        Refused: a gate refused it; names the gate and the difference.
    """
    project = open_project()
    version = version or project.latest.get("train")
    name_run("evaluate", version=version, data=project.registry.get(version).tags.get("data_digest"))
    record = find_verdict(project, version)
    if record is None:
        scored = task(score_holdout)(project, version)
        record = task(evaluate_candidate)(project, version, scored)
        task(log_verdict)(project, scored, record)
    task(check_gates)(record)
    return version
