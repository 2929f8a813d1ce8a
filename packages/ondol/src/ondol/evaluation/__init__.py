"""Evaluation: candidate and champion are scored on the same held-out rows, and the gates decide.

The steps of the flow are in `evaluate`. A new metric belongs in `metrics`, a new gate in `gates`; a project defines its
own in `model/evaluation.py`. `ml reproduce` is in `reproduction`.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.evaluation.evaluate import (
        Scored,
        check_gates,
        evaluate_candidate,
        find_verdict,
        log_verdict,
        publish_summary,
        score_holdout,
    )
    from ondol.evaluation.gates import Comparison, Gate, StoredVerdict
    from ondol.evaluation.metrics import Metric
    from ondol.evaluation.slices import Slices
else:
    __getattr__ = export(__name__)

__all__ = [
    "Comparison",
    "Gate",
    "Metric",
    "Scored",
    "Slices",
    "StoredVerdict",
    "check_gates",
    "evaluate_candidate",
    "find_verdict",
    "log_verdict",
    "publish_summary",
    "score_holdout",
]
