"""Pictures: one set for each problem, readable names, nothing on the screen."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from ondol.evaluation.metrics import Interval
from ondol.evaluation.plots import (
    MOST_CLASSES,
    Importance,
    bin_means,
    draw_importance,
    draw_plots,
    find_fonts,
    letter,
    letter_all,
    merge_rare,
    romanize,
    show_number,
)

NAMES = {
    "binary": ["roc", "precision-recall", "calibration", "confusion-matrix"],
    "multiclass": ["confusion-matrix", "roc-by-class"],
    "regression": ["predicted-vs-actual", "residuals", "residual-histogram"],
}


def made(problem: str, rows: int, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    if problem == "regression":
        y = rng.lognormal(10, 1, rows)
        return y, y * np.exp(rng.normal(0, 0.2, rows))
    classes = 2 if problem == "binary" else classes
    y = rng.integers(0, classes, rows)
    return y, rng.dirichlet(np.ones(classes), rows)


@pytest.mark.parametrize("problem", NAMES)
@pytest.mark.parametrize("rows", [1, 5, 300])
@pytest.mark.parametrize("champion", [False, True])
def test_every_picture_is_drawn(problem, rows, champion):
    y, candidate = made(problem, rows)
    _, other = made(problem, rows, seed=1)
    before = dict(matplotlib.rcParams)
    plots = draw_plots(problem, y, candidate, other if champion else None, ["제주", "$5~$10", "c"], "해지 여부")
    assert list(plots) == NAMES[problem]
    assert all(png.startswith(b"\x89PNG") for png in plots.values())
    assert dict(matplotlib.rcParams) == before


def test_many_and_absent_classes_are_drawn():
    y, p = made("multiclass", 400, classes=40)
    y[y == 3] = 4
    assert list(draw_plots("multiclass", y, p, p, [f"지역 {i}" for i in range(40)], "region")) == NAMES["multiclass"]


def test_constant_target_and_equal_scores_are_drawn():
    ones = np.ones(20)
    assert draw_plots("regression", ones, ones, ones)
    assert draw_plots("binary", np.ones(20, np.int64), np.full((20, 2), 0.5), classes=["a", "b"])


def test_same_rows_make_the_same_bytes():
    y, p = made("binary", 200)
    assert draw_plots("binary", y, p, classes=["a", "b"]) == draw_plots("binary", y, p, classes=["a", "b"])


def test_drawing_needs_no_pyplot_and_prints_nothing():
    code = (
        "import sys, numpy as np; from ondol.evaluation.plots import draw_plots;"
        "draw_plots('binary', np.array([0, 1, 1]), np.full((3, 2), .5), classes=['예', '漢'], target='🙂');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=".")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_import_costs_no_matplotlib():
    code = "import sys, ondol.evaluation.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hangul_is_romanized_where_no_font_has_it():
    assert [romanize(name) for name in ("서울", "제주", "세종", "해지 여부", "값 닭", "plus")] == [
        "seoul",
        "jeju",
        "sejong",
        "haeji yeobu",
        "gap dak",
        "plus",
    ]
    has_font = len(find_fonts()) > 1
    assert letter("서울") == ("서울" if has_font else "seoul")


def test_names_are_cut_unmarked_and_kept_apart():
    assert letter("$5") == r"\$5"
    assert len(letter("x" * 50)) == 20
    assert letter_all([1, True, "\U0010ffff", "\U0010fffe", ""]) == ["1", "True", "2: ", "3: ", "4: "]
    assert letter_all(["x" * 30 + "1", "x" * 30 + "2"])[0] != letter_all(["x" * 30 + "1", "x" * 30 + "2"])[1]


def test_rare_classes_share_the_last_row_and_no_row_is_lost():
    counts = np.random.default_rng(0).integers(0, 9, (30, 30)).astype(float)
    merged, names = merge_rare(counts, [str(i) for i in range(30)])
    assert merged.shape == (MOST_CLASSES, MOST_CLASSES) and merged.sum() == counts.sum()
    assert names[-1] == f"{30 - MOST_CLASSES + 1} others" and len(names) == MOST_CLASSES


def test_means_of_groups_of_equally_many_rows():
    by = np.arange(100.0)
    at, twice = bin_means(by, (by, 2 * by), bins=4)
    assert at == pytest.approx([12, 37, 62, 87]) and twice == pytest.approx(2 * at)
    assert len(bin_means(np.ones(9), (np.ones(9),), bins=4)[0]) == 1


def test_numbers_are_written_as_a_person_would():
    assert [show_number(v) for v in (1_200_000, 0.25, 999.5, -25_000)] == [
        "1,200,000",
        "0.25",
        "999.5",
        "-25,000",
    ]


def test_importance_is_drawn_for_any_names_and_for_unknown_intervals():
    names = ["누적 결제액 (원)", "$5~$10", "🙂", *(f"a rather long name of a column {place}" for place in range(30))]
    intervals = {name: Interval(0.3 / (place + 1), 0.2 / (place + 1), 0.4) for place, name in enumerate(names)}
    intervals["🙂"] = Interval(0.1, None, None)
    many = draw_importance(Importance(intervals, "roc_auc", 2000))
    one = draw_importance(Importance({"a": Interval(0.0, 0.0, 0.0)}, "mae", 5))
    assert many.startswith(b"\x89PNG") and one.startswith(b"\x89PNG")
    assert many == draw_importance(Importance(intervals, "roc_auc", 2000))
