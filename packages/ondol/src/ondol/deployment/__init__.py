"""Deployment: a version that passed its gates is compiled to ONNX, bundled, tested and put into production.

The steps of the flow are in `deploy`. `onnx` compiles, `parity` compares with scikit-learn, `bundle` builds what the
service loads, `smoke` asks a service before the champion moves. `predict` is batch prediction, a flow of its own.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.deployment.bundle import forget_bundle, import_bundle
    from ondol.deployment.deploy import (
        build,
        check_deployable,
        discard,
        is_in_service,
        report_deployment,
        restore,
        set_alias,
        set_champion,
        smoke_test,
    )
    from ondol.deployment.predict import choose_bundle, predict_rows, report_predictions, require_destination
    from ondol.deployment.smoke import smoke_service
else:
    __getattr__ = export(__name__)

__all__ = [
    "build",
    "check_deployable",
    "choose_bundle",
    "discard",
    "forget_bundle",
    "import_bundle",
    "is_in_service",
    "predict_rows",
    "report_deployment",
    "report_predictions",
    "require_destination",
    "restore",
    "set_alias",
    "set_champion",
    "smoke_service",
    "smoke_test",
]
