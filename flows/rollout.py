"""Rollout: the challenger is compared with the champion, and takes its next step, waits, or is withdrawn."""

from ondol.orchestration import name_run, stage, task
from ondol.project import open_project
from ondol.rollout import (
    act_on_decision,
    close_rollout,
    find_rollout,
    gather_evidence,
    is_running,
    judge_rollout,
    report_rollout,
    rollout_lock,
)


@stage(timeout_hours=1, alone=False)
def rollout() -> str:
    """Decide on the rollout that runs, if there is one; return its state.

    What was read of the log is written in one step, before the decision is carried out: a run that is killed is
    continued by the next one.

    Raises:
        UserError: the champion's bundle is damaged, or another run of this flow is at work.
    """
    project = open_project()
    found = find_rollout(project)
    if found is None:
        return "no rollout"
    project.store.refresh()  # what other hosts wrote, if the store is remote
    with rollout_lock(project):
        name_run("rollout", version=found.version)
        if is_running(project, found):
            evidence = task(gather_evidence)(project, found)
            assessment = judge_rollout(project, found, evidence)
            found = task(act_on_decision)(project, assessment)
            report_rollout(assessment, found)
        return task(close_rollout)(project, found)
