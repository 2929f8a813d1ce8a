"""Deployment: a version that passed its gates is compiled to ONNX, bundled, tested, and put into production or tried.

The steps of the flow are in `deploy`. `onnx` compiles and compares with scikit-learn, `explanation` builds what
predictions are explained with, `bundle` builds the bundle, and `smoke` tests a real service before the champion
changes. `predict` is batch prediction, a separate flow.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.deployment.bundle import build_bundle, import_bundle, remove_imported_bundle
    from ondol.deployment.deploy import (
        check_deployable,
        discard_bundle,
        is_deployed,
        release_bundle,
        report_deployment,
        restore_previous,
        set_mlflow_alias,
        smoke_test,
    )
    from ondol.deployment.predict import (
        check_predictions,
        choose_bundle,
        predict_rows,
        report_predictions,
        resolve_destination,
    )
    from ondol.deployment.smoke import smoke_service
else:
    __getattr__ = export(__name__)

__all__ = [
    "build_bundle",
    "check_deployable",
    "check_predictions",
    "choose_bundle",
    "discard_bundle",
    "import_bundle",
    "is_deployed",
    "predict_rows",
    "release_bundle",
    "remove_imported_bundle",
    "report_deployment",
    "report_predictions",
    "resolve_destination",
    "restore_previous",
    "set_mlflow_alias",
    "smoke_service",
    "smoke_test",
]
