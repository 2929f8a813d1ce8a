"""The problem's usual pictures, as PNG: the candidate in blue, the champion dashed in orange.

Colours are Okabe and Ito's (2008), told apart by the colour-blind; line style tells them apart in print.
Above 50,000 rows a seeded sample is drawn, and the title says so.
"""

import io
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ondol.evaluation.metrics import sample_rows
from ondol.evaluation.plots.lettering import find_fonts, letter, letter_all
from ondol.evaluation.plots.scene import Scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]
STYLE: Any = {
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.unicode_minus": False,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.color": "#e6e6e6",
    "legend.framealpha": 0.9,
    "legend.fontsize": 8,
}
DPI = 100


def draw_plots(
    problem: str,
    y: Array,
    candidate: Array,
    champion: Array | None = None,
    classes: Sequence[object] = (),
    target: str = "target",
    seed: int = 0,
) -> dict[str, bytes]:
    """Return the pictures of one evaluation as PNG by name.

    Names: binary `roc`, `precision-recall`, `calibration`, `confusion-matrix`; multiclass `confusion-matrix`,
    `roc-by-class`; regression `predicted-vs-actual`, `residuals`, `residual-histogram`.

    Args:
        problem: "binary", "multiclass" or "regression".
        y: What is true, [N]; see `ondol.evaluation.metrics`.
        candidate: The candidate's predictions, [N, K] or [N].
        champion: The champion's; None where there is none.
        classes: The contract's classes, in order.
        target: The target's name.
        seed: Of the sample of rows.
    """
    import matplotlib

    # A font without a bold face is drawn in the nearest it has, which is no news to whoever looks at the terminal.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from ondol.evaluation.plots.classification import BINARY, MULTICLASS
    from ondol.evaluation.plots.regression import REGRESSION

    rows = sample_rows(len(y), seed)
    note = f"{len(y):,} holdout rows"
    if rows is not None:
        note = f"{len(rows):,} of {note}"
        y, candidate, champion = y[rows], candidate[rows], None if champion is None else champion[rows]
    scene = Scene(y, candidate, champion, letter_all(classes), letter(target, 30), note)
    charts = {"binary": BINARY, "multiclass": MULTICLASS, "regression": REGRESSION}[problem]
    with matplotlib.rc_context(STYLE | {"font.family": list(find_fonts())}):
        return {name: _render(scene, draw) for name, draw in charts.items()}


def _render(scene: Scene, draw: "Callable[[Figure, Scene], None]") -> bytes:
    """Return one picture; a `Figure` of its own needs no pyplot and no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.4), dpi=DPI, layout="constrained")
    draw(figure, scene)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
