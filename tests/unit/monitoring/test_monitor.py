"""The monitor's parts: the log's window, the comparison's frames and limits, labels, the decision, the loop's state."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from monitor_support import START, records
from nasty_support import MARKUP, NAMES

from ondol.cli.status import loop_lines, window_lines
from ondol.config import Gates, Monitor, Retrain, Settings
from ondol.contract import Column, Contract, Encoding
from ondol.errors import UserError
from ondol.evaluation.metrics import Interval
from ondol.evaluation.targets import Reference
from ondol.monitoring.drift import (
    OTHERS,
    ColumnDrift,
    category_limit,
    confine,
    label_all,
    number_limit,
    pair_sides,
    share_limit,
    window_frame,
)
from ondol.monitoring.labels import read_labels
from ondol.monitoring.log import HEAD, Logged, parse_line, read_head, sample_logged, tally_window
from ondol.monitoring.performance import Performance, is_lost, measure
from ondol.monitoring.report import as_markdown, column_rows
from ondol.monitoring.retraining import (
    Loop,
    TrainingRequest,
    assess_window,
    change_loop,
    confirm_training_request,
    decide,
    decide_now,
    decide_retraining,
    event_id,
    matches,
    pause,
    read_loop,
    resume,
    save_training_request,
)
from ondol.monitoring.windows import Window, Windows, metric_names, window_id
from ondol.orchestration.alerts import waiting
from ondol.project import Project
from ondol.registry.champion import Champion, write_champion
from ondol.registry.rollout import Rollout, Step
from ondol.storage.files import read_json
from ondol.storage.store import Store, open_store
from ondol_serving.decision import DecisionRule

HOUR = timedelta(hours=1)
ANSWER = {"label": "no", "probabilities": {"no": 0.9, "yes": 0.1}}
CHAMPION = Champion(version="1", run_id="r", bundle="1-b", digest="d", since=START.isoformat())


def write(folder: Path, lines: list[str], at: datetime = START, name: str = "host-1-1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{at:%Y%m%dT%H%M%S}-{name}.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def lines(rows: int, at: datetime = START, bundle: str = "1-b", together: int = 1, **step: Any) -> list[str]:
    return list(records(bundle, [{"x": i} for i in range(rows)], [ANSWER] * rows, at, together, **step))


# The log


def test_window_takes_its_start_and_leaves_its_end_to_the_next(tmp_path):
    write(tmp_path, lines(4, step=HOUR))
    first = tally_window(tmp_path, START, START + 2 * HOUR, "1-b")
    second = tally_window(tmp_path, START + 2 * HOUR, START + 4 * HOUR, "1-b")
    assert (first.rows, second.rows) == (2, 2)
    assert [row.features["x"] for row in sample_logged(second, 9)] == [2, 3]


def test_torn_last_line_and_lines_that_are_not_records_are_left_out(tmp_path):
    whole = lines(3)
    write(tmp_path, [whole[0], "no json\n", '{"at": 3}\n', "[]\n", "\n", whole[1], whole[2][:-9]])
    found = tally_window(tmp_path, START, START + HOUR, "1-b")
    assert (found.rows, found.unreadable) == (2, 4)


def test_other_bundles_are_counted_apart(tmp_path):
    write(tmp_path, lines(2) + lines(3, bundle="2-c"))
    found = tally_window(tmp_path, START, START + HOUR, "1-b")
    assert (found.requests, found.others) == (2, 3)


def test_files_of_another_time_are_not_read(tmp_path):
    write(tmp_path, ["no json\n"], START + 9 * HOUR)
    assert tally_window(tmp_path, START, START + HOUR, "1-b").unreadable == 0


@pytest.mark.parametrize("together", [1, 7, 100])
def test_rows_are_counted_and_sampled_for_any_requests(tmp_path, together):
    write(tmp_path, lines(100, together=together))
    found = tally_window(tmp_path, START, START + HOUR, "1-b")
    assert (found.rows, found.requests) == (100, -(-100 // together))
    every = sample_logged(found, 1_000)
    assert [row.features["x"] for row in every] == list(range(100))
    assert [row.row for row in every[:together]] == list(range(together))
    some = sample_logged(found, 10, seed=1)
    assert some == sample_logged(found, 10, seed=1) != sample_logged(found, 10, seed=2)
    assert len({row.features["x"] for row in some}) == 10


def test_every_row_is_as_likely_to_be_sampled(tmp_path):
    write(tmp_path, lines(90, together=90) + lines(10, bundle="1-b"))
    found = tally_window(tmp_path, START, START + HOUR, "1-b")
    first = sum(row.row == 0 for seed in range(200) for row in sample_logged(found, 10, seed))
    assert 170 < first < 270  # 11 of 100 rows are the first of their request, 2,000 were drawn


@pytest.mark.parametrize("number", ["1e400", "1" * 400, "-1e999", "7"])
def test_a_record_with_an_id_that_no_float_can_hold_is_parsed(number: str) -> None:
    line = f'{{"id":"a","request":{{"rows":[{{"customer_id":{number},"age":40}}]}},"predictions":[]}}'
    assert parse_line(line.encode())["request"]["rows"][0]["age"] == 40


def test_a_record_in_another_form_is_read_as_json():
    record = json.loads(lines(3, together=3)[0])
    swapped = dict(reversed(record.items()))
    assert read_head(json.dumps(swapped).encode()) == read_head(json.dumps(record).encode())
    assert read_head(json.dumps(record, separators=(",", ":")).encode()) == read_head(json.dumps(record).encode())


def test_a_class_called_predictions_is_counted_right():
    record = json.loads(lines(1)[0]) | {"predictions": [{"label": "x", "probabilities": {"predictions": 0.5}}] * 2}
    head = read_head(json.dumps(record).encode())
    assert head is not None and head.rows == 2


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_in_a_rollout_only_answers_that_callers_got_count(tmp_path, separators):
    """Those of either role. A prediction that no caller got and a failure count nowhere, also not as damaged lines."""
    made = [json.loads(line) for line in lines(2)]
    head = {name: made[0][name] for name in ("id", "at", "version", "bundle")}
    answers = [head | {"role": role} | made[0] for role in ("champion", "challenger")]
    shadows = [
        head | {"role": "shadow"} | times | {"predictions": [ANSWER]} for times in ({}, {"ms": 1.0, "champion_ms": 2.0})
    ]
    failures = [head | {"role": role, "ms": 1.0, "error": 'X: "predictions":'} for role in ("champion", "challenger")]
    written = [*made, *answers, *shadows, *failures]
    write(tmp_path, [json.dumps(one, separators=separators) + "\n" for one in written])
    found = tally_window(tmp_path, START, START + HOUR, "1-b")
    assert (found.requests, found.others, found.unreadable) == (4, 0, 0)
    assert len(sample_logged(found, 10)) == 4


def test_a_log_that_is_not_there_is_an_empty_window(tmp_path):
    found = tally_window(tmp_path / "log", START, START + HOUR, "1-b")
    assert found.rows == 0 and sample_logged(found, 10) == []


# Frames


def contract(*columns: Column, problem: str = "binary") -> Contract:
    target = Column(name="y", kind="text", role="target")
    return Contract(problem=problem, target="y", classes=("no", "yes"), columns=(*columns, target))  # type: ignore[arg-type]


def reference(values: dict[str, list[Any]], *columns: Column) -> Reference:
    rows = len(next(iter(values.values())))
    outputs = {"prediction": ["no"] * rows, "probability": np.linspace(0, 1, rows)}
    return Reference(pd.DataFrame(values | outputs), contract(*columns), "prediction", "probability")


def logged(rows: list[dict[str, Any]]) -> list[Logged]:
    return [Logged(str(i), 0, row, ANSWER) for i, row in enumerate(rows)]


def test_window_has_the_contracts_kinds_and_gaps():
    region = Column(name="도시", kind="text", nullable=True)
    known = reference(
        {"도시": ["서울", "부산", None], "n": [1, 2, 3], "when": pd.to_datetime(["2025-01-01"] * 3).tolist()},
        region,
        Column(name="n", kind="integer"),
        Column(name="when", kind="date"),
    )
    rows = [{"도시": "서울", "n": 2.0, "when": "2025-01-02T00:00:00"}, {"n": 3}, {"도시": "", "n": "?", "when": "x"}]
    frame = window_frame(known, logged(rows))
    assert frame["도시"].isna().tolist() == [False, True, True]
    assert frame["n"].tolist()[:2] == [2, 3] and frame["n"].isna().tolist() == [False, False, True]
    assert frame["when"][0] == pd.Timestamp("2025-01-02") and frame["when"].isna().sum() == 2
    assert frame["probability"].tolist() == [0.1] * 3


def test_rare_values_share_a_category_and_unseen_ones_are_counted():
    names = [f"n{i}" for i in range(100)]
    encoding = Encoding(tensor="string", known=tuple(names[:50]))
    known = reference({"name": names}, Column(name="name", kind="text", encoding=encoding))
    sides = pair_sides(known, window_frame(known, logged([{"name": "new"}, {"name": "n1"}])))
    assert sides.window["name"][0] == OTHERS
    assert sides.reference["name"].nunique() == 31
    assert sides.unseen["name"] == (0.5, 0.5)


def test_a_number_with_two_values_is_a_flag_and_large_ids_stay_apart():
    known = reference({"n": [10_000_001, 10_000_002, 10_000_001]}, Column(name="n", kind="integer"))
    sides = pair_sides(known, window_frame(known, logged([{"n": 10_000_002.0}])))
    assert sides.kinds["n"] == "category"
    assert sides.window["n"][0] == sides.reference["n"][1] == "10000002"


def test_one_absurd_value_is_brought_to_the_rim():
    known = reference({"x": [0.0, 5.0, 10.0]}, Column(name="x", kind="number"))
    sides = pair_sides(known, window_frame(known, logged([{"x": 1e300}, {"x": -1e300}])))
    assert sides.window["x"].tolist() == [20.0, -10.0]


def test_dates_that_nanoseconds_cannot_hold_are_compared():
    known = reference(
        {"d": pd.to_datetime(["2022-01-01", "2022-06-01", "9999-12-31"]).as_unit("us")}, Column(name="d", kind="date")
    )
    sides = pair_sides(known, window_frame(known, logged([{"d": "9999-12-31T00:00:00"}, {"d": "2022-01-01T00:00:00"}])))
    assert sides.reference["d"].tolist() == [18993.0, 19144.0, 2932896.0]
    assert sides.window["d"].tolist() == [2932896.0, 18993.0]


def test_tiny_numbers_are_scaled_alike_on_both_sides():
    known = reference({"x": [1e-6, 2e-6, 3e-6]}, Column(name="x", kind="number"))
    sides = pair_sides(known, window_frame(known, logged([{"x": 2e-6}])))
    assert sides.reference["x"].std() > 0.1
    assert sides.window["x"][0] == pytest.approx(sides.reference["x"][1])


# Limits and verdicts


def test_limits_are_the_settings_own_for_many_rows_and_wider_for_few():
    assert number_limit(0.1, 10_000, 10_000) == 0.1
    assert number_limit(0.1, 1_000, 200) > 0.2
    assert category_limit(0.1, 13, 10_000, 10_000) == 0.1
    assert category_limit(0.1, 30, 1_000, 200) > category_limit(0.1, 3, 1_000, 200) > 0.1
    assert share_limit(0.1, 0.0, 0.0, 1_000, 1_000) == 0.1
    assert share_limit(0.1, 0.5, 0.5, 100, 100) > 0.2


def column(name: str, *why: str, score: float | None = 0.0) -> ColumnDrift:
    return ColumnDrift(name=name, method="wasserstein", score=score, limit=0.1, missing=0, missing_before=0, why=why)


def performance(lost: bool) -> Performance:
    figure = Interval(0.7, 0.6, 0.8)
    return Performance(metric="roc_auc", rows=500, figure=figure, before=figure, metrics={"roc_auc": 0.7}, lost=lost)


@pytest.mark.parametrize(
    ("drifted", "prediction", "lost", "verdict"),
    [
        (0, (), None, "ok"),
        (2, (), None, "ok"),
        (3, (), None, "drift"),
        (0, ("moved",), None, "drift"),
        (0, (), False, "ok"),
        (0, (), True, "worse"),
        (9, ("moved",), True, "worse"),
    ],
)
def test_verdict_follows_columns_predictions_and_labels(drifted, prediction, lost, verdict):
    features = tuple(column(f"c{i}", *(["moved"] if i < drifted else [])) for i in range(10))
    labelled = None if lost is None else performance(lost)
    found, reasons = assess_window(features, column("prediction", *prediction), labelled, 0.3)
    assert found == verdict
    assert bool(reasons) == (verdict != "ok")


@pytest.mark.parametrize(
    ("metric", "now", "lost"),
    [
        ("roc_auc", Interval(0.70, 0.66, 0.74), True),
        ("roc_auc", Interval(0.815, 0.775, 0.855), False),  # as chance would have it
        ("roc_auc", Interval(0.83, 0.829, 0.831), False),  # too little
        ("roc_auc", Interval(0.95, 0.94, 0.96), False),  # better
        ("roc_auc", Interval(0.50, None, None), False),
        ("log_loss", Interval(0.99, 0.95, 1.03), True),
    ],
)
def test_performance_is_lost_beyond_doubt_only(metric, now, lost):
    before = Interval(0.84, 0.835, 0.845)
    assert is_lost("binary", metric, now, before, 0.95, Monitor()) is lost


@pytest.mark.parametrize(("confidence", "lost"), [(0.9, True), (0.95, False)])
def test_how_sure_a_loss_must_be_is_a_setting_of_the_monitor(confidence, lost):
    now, before = Interval(0.81, 0.77, 0.85), Interval(0.84, 0.835, 0.845)
    assert is_lost("binary", "roc_auc", now, before, 0.95, Monitor(confidence=confidence)) is lost


def test_loss_of_an_error_in_the_targets_unit_is_a_share():
    before = Interval(100_000.0, 99_900.0, 100_100.0)
    assert not is_lost("regression", "rmse", Interval(101_000.0, 100_900.0, 101_100.0), before, 0.95, Monitor())
    assert is_lost("regression", "rmse", Interval(103_000.0, 102_900.0, 103_100.0), before, 0.95, Monitor())


def test_measure_leaves_out_labels_of_classes_never_trained():
    known = contract(Column(name="x", kind="number"))
    rows = pd.DataFrame(
        {"prediction": [[0.9, 0.1], [0.2, 0.8]] * 20 + [[0.5, 0.5]], "label": ["no", "yes"] * 20 + ["?"]}
    )
    found = measure(known, {"roc_auc": {"value": 0.9, "low": 0.8, "high": 1.0}}, rows, Gates(), Monitor())
    assert found is not None
    assert (found.rows, found.figure.value, found.lost) == (40, 1.0, False)


def test_measure_says_nothing_where_the_metric_is_undefined():
    known = contract(Column(name="x", kind="number"))
    rows = pd.DataFrame({"prediction": [[0.9, 0.1]] * 20, "label": ["no"] * 20})
    assert measure(known, {}, rows, Gates(), Monitor()) is None


# The decision


def window(number: int, verdict: str, **more: Any) -> Window:
    start = START + number * HOUR
    name = window_id(start, "1")
    made = {"id": name, "start": start, "end": start + HOUR, "version": "1", "bundle": "1-b", "verdict": verdict}
    return Window.model_validate(made | {"reasons": ("so",) if verdict in ("drift", "worse") else ()} | more)


def ask(verdicts: str, loop: Loop | None = None, hours: float = 100, **rules: Any) -> Any:
    words = {"o": "ok", "d": "drift", "w": "worse", "s": "too small"}
    windows = [window(i, words[letter]) for i, letter in enumerate(verdicts)]
    return decide(windows, CHAMPION, Retrain(**rules), loop or Loop(), START + timedelta(hours=hours))


@pytest.mark.parametrize("verdicts", ["dd", "dod", "dw", "ww", "oodd", "ddd", "dssd"])
def test_two_of_three_windows_and_the_latest_want_training(verdicts):
    assert ask(verdicts).wanted


@pytest.mark.parametrize("verdicts", ["", "s", "o", "d", "ddo", "dood", "dd" + "o", "od", "ds"])
def test_fewer_or_older_windows_do_not(verdicts):
    decision = ask(verdicts)
    assert not decision.wanted and decision.why


def test_one_window_is_enough_where_it_is_set_so():
    assert ask("d", windows=1, of=1).wanted


def test_a_pause_holds_training_back_and_says_who_and_why(tmp_path):
    pause(Store(tmp_path), "점검 중")
    decision = ask("dd", read_loop(Store(tmp_path)))
    assert not decision.wanted and "점검 중" in decision.why and "ml loop resume" in decision.why
    resume(Store(tmp_path), "done")
    assert ask("dd", read_loop(Store(tmp_path))).wanted
    assert [(c.what, c.why) for c in read_loop(Store(tmp_path)).history] == [("pause", "점검 중"), ("resume", "done")]


def wanted(number: int, hours: float) -> TrainingRequest:
    at = (START + timedelta(hours=hours)).isoformat()
    name = window(number, "drift").id
    return TrainingRequest(window=name, windows=(name,), version="1", bundle="1-b", reason="so", requested_at=at)


def test_a_new_champion_and_a_request_start_a_cooldown():
    assert "cooling down" in ask("dd", hours=22).why
    assert ask("dd", hours=25).wanted
    assert "cooling down" in ask("ddd", Loop(wanted=wanted(1, 90)), hours=100).why
    assert ask("ddd", Loop(wanted=wanted(1, 70)), hours=100).wanted


def test_no_training_is_requested_while_a_rollout_is_not_decided(tmp_path):
    project = Project(Settings(root=tmp_path))
    store = project.store
    for number in range(2):
        Windows(store).write(window(number, "drift"))
    write_champion(store, CHAMPION)
    assert decide_now(project, CHAMPION).wanted
    step = Step(at=START.isoformat(), share=0.05, who="me", why="a test")
    made = {"champion": CHAMPION.bundle, "move": CHAMPION.move, "version": "2", "run_id": "r2", "bundle": "2-b"}
    rollout = Rollout(id="r", strategy="canary", digest="d", plan=(0.05, 1.0), steps=(step,), **made)
    store.write_json(store.folder / "rollout.json", rollout.model_dump())
    decision = decide_now(project, CHAMPION)
    assert not decision.wanted and "version 2" in decision.why
    write_champion(store, CHAMPION.model_copy(update={"since": (START + HOUR).isoformat()}))  # it has ended
    assert decide_now(project, CHAMPION).wanted


def test_the_same_window_never_asks_twice():
    loop = Loop(wanted=wanted(1, 1))
    assert not ask("dd", loop, cooldown_hours=0).wanted
    assert ask("ddd", loop, cooldown_hours=0).wanted


@pytest.fixture
def alerted(tmp_path, monkeypatch):
    """A store, and the alerts on its windows: `alerted(verdicts, **settings)` looks as a monitor does."""
    monkeypatch.setattr("ondol.monitoring.retraining.has_automation", lambda project: False)  # no server here
    write_champion(Store(tmp_path / ".ml" / "store"), CHAMPION)

    def look(verdicts: str, **rules: Any) -> list[str]:
        settings = Settings(root=tmp_path, retrain=Retrain(**rules), project={"name": "shop"})  # type: ignore[arg-type]
        words = {"o": "ok", "d": "drift", "w": "worse", "s": "too small"}
        windows = Windows(open_store(settings))
        for number, letter in enumerate(verdicts):
            made = window(number, words[letter])
            path = windows.path(made.id, "json")
            known = Window.model_validate_json(path.read_bytes()) if path.exists() else made
            windows.write(made.model_copy(update={"alerted": known.alerted}))
        decide_retraining(Project(settings))
        messages = [read_json(path) for path in waiting(settings)]
        return [message["what"] for message in messages if message["kind"] == "drift"]  # type: ignore[index]

    return look


def test_drift_is_alerted_while_the_loop_is_paused(alerted, tmp_path):
    pause(Store(tmp_path / ".ml" / "store"), "stocktaking")
    (told,) = alerted("dd"[:1])
    assert "1 of the last 3 windows" in told
    told = alerted("dd")[-1]
    assert "so" in told and "paused" in told and "stocktaking" in told
    assert read_loop(Store(tmp_path / ".ml" / "store")).wanted is None


def test_drift_is_alerted_while_the_loop_cools_down(alerted):
    assert "cooling down" in alerted("dd", cooldown_hours=10**6)[-1]


def test_drift_is_alerted_during_training(alerted):
    assert "retraining is requested" in alerted("dd", cooldown_hours=0)[-1]
    assert "cooling down" in alerted("ddd", cooldown_hours=10**6)[-1]


def test_a_window_is_alerted_once_for_each_verdict(alerted):
    for verdicts, expected in (("d", 1), ("d", 1), ("do", 1), ("wo", 2), ("wo", 2), ("do", 2), ("wow", 3), ("wows", 3)):
        assert len(alerted(verdicts)) == expected, verdicts


@pytest.mark.parametrize("lost", [False, True])
def test_the_console_shows_the_live_metric_and_the_labelled_rows(tmp_path, lost):
    write_champion(Store(tmp_path / ".ml" / "store"), CHAMPION)
    settings = Settings(root=tmp_path)
    figure, before = Interval(value=0.81, low=0.78, high=0.84), Interval(value=0.9, low=0.88, high=0.92)
    live = Performance(metric="roc_auc", rows=412, figure=figure, before=before, metrics={}, lost=lost)
    verdict, reasons = ("worse", (f"performance lost: {live.sentence}",)) if lost else ("ok", ())
    Windows(open_store(settings)).write(window(0, verdict, performance=live, reasons=reasons))
    text = "\n".join(window_lines(Project(settings), 5))
    assert (
        text.count("roc_auc 0.8100 (0.7800 to 0.8400) on 412 labelled rows, 0.9000 (0.8800 to 0.9200) on the holdout")
        == 1
    )


def test_the_console_shows_a_request_that_prefect_received(tmp_path):
    store, settings = Store(tmp_path / ".ml" / "store"), Settings(root=tmp_path)
    write_champion(store, CHAMPION)
    for number in range(2):
        Windows(open_store(settings)).write(window(number, "drift"))
    assert loop_lines(Project(settings))[0].startswith(
        "The next `ml monitor` requests retraining: 2 of the last windows"
    )
    request = wanted(1, 2)
    change_loop(store, lambda loop: loop.model_copy(update={"wanted": request}))
    assert "Prefect has not received the event" in loop_lines(Project(settings))[0]
    confirm_training_request(store, request.window)
    assert loop_lines(Project(settings)) == [
        f"Retraining was requested at {request.requested_at}, and Prefect received the event."
    ]


def test_the_console_names_the_drifted_columns_and_the_report_that_is_kept(tmp_path):
    write_champion(Store(tmp_path / ".ml" / "store"), CHAMPION)
    settings = Settings(root=tmp_path)
    windows = Windows(open_store(settings))
    columns = (column("plan", "moved", score=0.2), column("fee", score=0.05), column("나이", "moved", score=0.9))
    for number in range(2):
        windows.write(window(number, "ok", columns=columns))
    windows.write_report(window(1, "ok").id, "<html></html>")
    lines = window_lines(Project(settings), 5)
    assert lines[1:3] == ["  drifted columns: 나이, plan", f"  report: .ml/store/windows/{window(1, 'ok').id}.html"]
    assert [line for line in lines if "report" in line] == lines[2:3]  # the other one was removed


def test_windows_that_are_ok_or_too_small_send_no_alert(alerted):
    assert alerted("osos") == []


def test_confirmation_is_of_the_request_that_was_sent(tmp_path):
    save_training_request(Store(tmp_path), wanted(1, 1))
    assert confirm_training_request(Store(tmp_path), "another").wanted.emitted_at is None  # type: ignore[union-attr]
    assert confirm_training_request(Store(tmp_path), wanted(1, 1).window).wanted.emitted_at  # type: ignore[union-attr]


def test_settings_that_can_never_be_met_are_refused():
    with pytest.raises(ValueError, match="4 of the last 3 windows"):
        Retrain(windows=4, of=3)


def test_columns_have_metric_names_that_mlflow_takes_and_that_stay_apart():
    from mlflow.utils.validation import _validate_metric_name

    names = metric_names(NAMES)
    assert names["price"] == "price" and names["나이 (만)"].startswith("나이 _만_-")
    folded = [name.casefold() for name in names.values()]
    assert len(set(folded)) == len(NAMES)
    for name in names.values():
        for prefix in ("drift", "missing"):
            _validate_metric_name(f"{prefix}/{name}")
    assert metric_names(["cost/"])["cost/"] == names["cost/"]  # the same in every window


def test_the_reports_labels_stay_apart_and_hold_no_markup():
    labels = label_all([*NAMES, *MARKUP, "a\u202eb", "", " "])
    assert len(set(labels.values())) == len(labels)
    assert not set("<>\n\x1b\u202e") & set("".join(labels.values()))
    assert max(map(len, labels.values())) < 70 and labels["나이 (만)"] == "나이 (만)"


def test_the_report_runs_its_own_scripts_alone():
    data = 'var a = {"name": "</script><script>planted()</script>"};'
    page = confine(
        f"<html><head><style></style><script>{data}</script>\n    </head><body><script>b()</script></body></html>"
    )
    (policy,) = re.findall('Content-Security-Policy" content="([^"]*)"', page)
    escaped = data.replace("<", "\\u003c")
    for script in (escaped, "b()"):
        assert f"<script>{script}</script>" in page
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.count("sha256-") == 2 and "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert page.index("Content-Security-Policy") < page.index("<script>")


def test_an_event_keeps_its_id_and_is_heard_by_its_project_alone():
    assert event_id("a", "w") == event_id("a", "w") != event_id("b", "w")
    trigger = {"type": "event", "expect": ["ml.retrain"], "match": {"prefect.resource.id": "ml.project.a"}}
    assert matches({"triggers": [trigger]}, "a") and not matches(trigger, "b")
    assert matches(trigger | {"match": {}}, "b")
    assert not matches(trigger | {"expect": ["prefect.flow-run.Failed"]}, "a")


# Windows in the store


def test_the_next_window_begins_where_the_last_evaluated_one_ended(tmp_path):
    windows = Windows(Store(tmp_path))
    assert windows.next_start(CHAMPION) == START
    windows.write(window(0, "ok"))
    windows.write(window(1, "too small"))
    assert windows.next_start(CHAMPION) == START + HOUR
    windows.write(window(1, "drift"))  # of the same start: in the place of the one that was too small
    assert [w.verdict for w in windows.of(CHAMPION)] == ["ok", "drift"]


def test_a_new_champion_begins_a_new_history(tmp_path):
    windows = Windows(Store(tmp_path))
    windows.write(window(0, "drift"))
    again = CHAMPION.model_copy(update={"since": (START + 5 * HOUR).isoformat()})
    assert windows.of(again) == []
    assert windows.next_start(again) == START + 5 * HOUR
    assert windows.of(CHAMPION.model_copy(update={"bundle": "2-c"})) == []


def test_old_reports_go_and_records_stay(tmp_path):
    windows = Windows(Store(tmp_path))
    for number in range(5):
        windows.write(window(number, "ok"))
        windows.write_report(window(number, "ok").id, "<html>")
        windows.write_sample(window(number, "ok").id, logged([{"x": 1}]), "x", str)
    windows.prune(2)
    kept = sorted(path.name for path in windows.folder.iterdir())
    assert sum(name.endswith(".html") for name in kept) == sum(name.endswith(".parquet") for name in kept) == 2
    assert len(windows.of(CHAMPION)) == 5
    assert windows.path(window(4, "ok").id, "html").exists()


def test_a_window_is_reported_in_words():
    moved = window(0, "drift", columns=(column("도시", "moved", score=None), column("b")), prediction=column("p"))
    text = as_markdown(moved, ask("dd"), "", "report.html")
    assert "1 of 2" in text and "so" in text and "report.html" in text
    assert [row["column"] for row in column_rows(moved)] == ["p", "도시", "b"]


# Labels


def labelled(tmp_path: Path, frame: pd.DataFrame, sample: pd.DataFrame) -> dict[str, str]:
    frame.to_csv(tmp_path / "labels.csv", index=False)
    settings = Settings(root=tmp_path, monitor=Monitor(labels="labels.csv"))
    known = contract(Column(name="id no", kind="integer", role="id"))
    found = read_labels(settings, known, [sample]).join(sample)
    return dict(zip(found["request_id"] + "/" + found["row"].astype(str), found["label"], strict=True))


SAMPLE = pd.DataFrame({"request_id": ["a", "a", "b", "c"], "row": [0, 1, 0, 0], "id": ["7", "8", None, "7"]})


def test_labels_join_by_request_and_row(tmp_path):
    frame = pd.DataFrame({"request_id": ["a", "a", "z"], "row": [1, 0, 0], "y": ["yes", "no", "no"]})
    assert labelled(tmp_path, frame, SAMPLE) == {"a/1": "yes", "a/0": "no"}


def test_labels_without_rows_are_of_the_first(tmp_path):
    frame = pd.DataFrame({"request_id": ["a", "b", "b"], "y": ["yes", "no", "yes"]})
    assert labelled(tmp_path, frame, SAMPLE) == {"a/0": "yes", "b/0": "yes"}  # the last one counts


def test_labels_join_by_the_id_that_callers_sent(tmp_path):
    frame = pd.DataFrame({"id no": [7, 9], "y": ["yes", "no"]})
    assert labelled(tmp_path, frame, SAMPLE) == {"a/0": "yes", "c/0": "yes"}


@pytest.mark.parametrize("header", [True, False])
def test_labels_are_read_in_the_notation_of_the_data_with_or_without_its_header(tmp_path, header):
    (tmp_path / "labels.csv").write_text("request_id;row;y\na;1; yes\na;0;no\n", encoding="cp949")
    data = {"delimiter": ";", "encoding": "cp949", "trim": True, "header": header}
    settings = Settings(root=tmp_path, data=data, monitor=Monitor(labels="labels.csv"))
    known = contract(Column(name="id no", kind="integer", role="id"))
    found = read_labels(settings, known, [SAMPLE]).join(SAMPLE)
    assert found["label"].tolist() == ["no", "yes"]


@pytest.mark.parametrize("target", ["row", "request_id"])
def test_a_target_with_the_name_of_a_key_is_a_target(tmp_path, target):
    column = Column(name=target, kind="text", role="target")
    identity = Column(name="id no", kind="integer", role="id")
    known = Contract(problem="binary", target=target, classes=("no", "yes"), columns=(identity, column))
    keys = {"request_id": ["a", "b"]} if target == "row" else {"id no": [7, 8]}
    pd.DataFrame(keys | {target: ["yes", "no"]}).to_csv(tmp_path / "labels.csv", index=False)
    settings = Settings(root=tmp_path, monitor=Monitor(labels="labels.csv"))
    found = read_labels(settings, known, [SAMPLE]).join(SAMPLE)
    assert found["label"].tolist() == (["yes", "no"] if target == "row" else ["yes", "no", "yes"])


def test_missing_labels_are_not_labels(tmp_path):
    frame = pd.DataFrame({"request_id": ["a", "b"], "y": ["yes", None]})
    assert labelled(tmp_path, frame, SAMPLE) == {"a/0": "yes"}


@pytest.mark.parametrize(
    ("columns", "said"), [({"request_id": ["a"]}, 'no column "y"'), ({"y": ["no"], "key": [1]}, '"id no"')]
)
def test_labels_that_cannot_be_joined_say_what_they_need(tmp_path, columns, said):
    with pytest.raises(UserError, match=said):
        labelled(tmp_path, pd.DataFrame(columns), SAMPLE)


def test_times_are_in_utc():
    assert window_id(datetime(2026, 1, 1, 12, tzinfo=UTC), "3") == "20260101T120000000000-v3"


def test_what_the_service_writes_is_read_the_fast_way(tmp_path):
    from ondol_serving.contract import Contract as ServiceContract
    from ondol_serving.log import Answered, Recorder
    from ondol_serving.settings import Rules

    recorder = Recorder(ServiceContract("regression", "y", None, ()), "3", tmp_path / "3-abcdef012345", Rules())
    line = recorder.line(
        Answered("a" * 32, 0.41, b'{"rows": [{"x": 1}]}', 2, b'[{"value":2.0}]'), "2026-01-31T09:30:00.000000+00:00"
    )
    found = HEAD.match(line)
    assert found
    assert found[2] == b"3-abcdef012345"


def test_measure_uses_the_threshold_of_the_version():
    rule = DecisionRule(0.2, ((0.0, 1.0), (5.0, 0.0)))
    known = contract(Column(name="x", kind="number")).model_copy(update={"decision": rule})
    rows = pd.DataFrame({"prediction": [[0.7, 0.3], [0.9, 0.1]] * 20, "label": ["yes", "no"] * 20})
    found = measure(known, {}, rows, Gates(metric="cost"), Monitor())
    assert found is not None
    assert (found.figure.value, found.metrics["recall"], found.metrics["accuracy"]) == (0.0, 1.0, 1.0)
    assert measure(known.model_copy(update={"decision": None}), {}, rows, Gates(metric="cost"), Monitor()) is None
