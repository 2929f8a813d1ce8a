"""Rollout: judges a challenger that is tried beside the champion, and promotes or withdraws it.

The steps of the flow are in `assessment`. `reading` reads the log, `evidence` holds the sums in the store, `sequences`
has the statistics, and `judge` the checks and the decision. How requests are shared is in `ondol.registry.rollout` and
in the service.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.rollout.assessment import (
        act_on_decision,
        close_rollout,
        find_rollout,
        gather_evidence,
        is_running,
        judge_rollout,
        last_assessment,
        report_rollout,
        rollout_lock,
    )
else:
    __getattr__ = export(__name__)

__all__ = [
    "act_on_decision",
    "close_rollout",
    "find_rollout",
    "gather_evidence",
    "is_running",
    "judge_rollout",
    "last_assessment",
    "report_rollout",
    "rollout_lock",
]
