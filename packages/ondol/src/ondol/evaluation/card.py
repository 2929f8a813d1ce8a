"""The model card of a version: what it is for, what it was made from, how good it is, and where it must not be trusted.

All of it is read from the records of the version, so that a card can be written at any time. What changes after the
deployment, the history and the drift, is as of the moment of writing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ondol.contract import Contract
from ondol.evaluation.gates import StoredVerdict, gate_rows, show_figure, show_interval
from ondol.evaluation.metrics import metrics_of
from ondol.evaluation.page import Block, Page, Pictures, Rows, Section, write_html, write_markdown
from ondol.evaluation.slices import name_error, slice_rows
from ondol.orchestration.processes import mlflow_ui
from ondol.project import Project
from ondol.redaction import redact, show_uri
from ondol.registry.champion import Champion, version_of
from ondol.snapshots.snapshots import Snapshot
from ondol.storage.files import utc_now
from ondol.training.dataset import Holdout
from ondol.training.provenance import SHAPING
from ondol.training.support import TAIL, Support
from ondol.validation.results import Validation

MARKDOWN, HTML = "card.md", "card.html"
DOCUMENTS = (
    *("contract.json", "provenance.json", "settings.json", "choice.json", "leakage.json", "support.json"),
    *("basis.json", "importance.json", "calibration.json"),
)
CALIBRATION = ("calibration", "predicted-vs-actual")  # plots
QUALITY = ("roc", "precision-recall", "roc-by-class", "confusion-matrix", "residuals", "residual-histogram")
MOST_COLUMNS = 40
SPLITS = {
    "random": "at random, by a hash of each row, id or group",
    "group": "at random, by whole groups",
    "stratified": "at random, with the same share of each class or tenth of the target",
    "time": "by time: the latest rows are held out",
}
UNRECORDED = "This version was trained by an earlier release, which did not record it."
UNJUDGED = "This version was not evaluated: `ml evaluate {version}` evaluates it."
Documents = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class Records:
    """What is recorded of a version.

    Attributes:
        version: The version.
        run_id: The run that made it.
        tags: The tags of the run.
        metrics: The metrics of the run.
        params: The parameters of the run.
        documents: The JSON documents of the run, by file name.
        plots: PNG images of the evaluation, by name.
        contract: The contract that it was trained with.
        snapshot: The table that it was trained on.
        validation: The validation of that table; None if its record was removed.
        verdict: The last verdict; None if it was not evaluated.
        champion: What is in production, with the history; None if nothing is.
    """

    version: str
    run_id: str
    tags: dict[str, str]
    metrics: dict[str, float]
    params: dict[str, str]
    documents: Documents
    plots: dict[str, bytes]
    contract: Contract
    snapshot: Snapshot
    validation: Validation | None
    verdict: StoredVerdict | None
    champion: Champion | None

    @property
    def support(self) -> Support | None:
        """The values of the training rows; None in older records."""
        found = self.documents.get("support.json")
        return Support.model_validate(found) if found else None


def read_records(project: Project, version: str, verdict: StoredVerdict | None = None) -> Records:
    """Return what is recorded of a version; `verdict` is one that is not stored yet.

    Raises:
        UserError: the version, its run or its snapshot does not exist.
    """
    registry = project.registry
    run, contract = registry.run_of(version), registry.read_record(version)["contract.json"]
    tags = dict(run.data.tags)
    return Records(
        version=version,
        run_id=run.info.run_id,
        tags=tags,
        metrics=dict(run.data.metrics),
        params=dict(run.data.params),
        documents=registry.read_documents(run, DOCUMENTS),
        plots=registry.read_plots(run),
        contract=Contract.model_validate(contract),
        snapshot=project.snapshots.get(tags["data_digest"]),
        validation=project.validations.find(tags["validation"]),
        verdict=verdict or project.verdicts.of_run(version, run.info.run_id),
        champion=project.champion,
    )


def write_card(
    project: Project,
    version: str,
    since: Sequence[Block] = (),
    private: bool = False,
    verdict: StoredVerdict | None = None,
) -> dict[str, bytes]:
    """Return the model card of a version: its files, by name.

    Args:
        project: The project.
        version: A registered version.
        since: What the monitor has found since its deployment.
        private: Whether to name the address of the data, and who changed what is in production and why. A service shows
            its card to all callers.
        verdict: The verdict, if it is not stored yet.

    Raises:
        UserError: a record of the version is missing.
    """
    page = make_card(project, read_records(project, version, verdict), since, private)
    return {MARKDOWN: write_markdown(page).encode(), HTML: write_html(page).encode()}


def log_card(project: Project, version: str, files: Mapping[str, bytes]) -> str:
    """Add a card to the version's MLflow run in place of an earlier one; return its address in the MLflow UI."""
    run_id = project.registry.run_id(version)
    project.registry.log_files(run_id, files)
    return card_address(project, run_id)


def card_address(project: Project, run_id: str) -> str:
    """Return the address of a run's card in the MLflow UI."""
    return f"{mlflow_ui(project.settings)}{project.registry.run_path(run_id)}/artifacts/{HTML}"


def make_card(project: Project, records: Records, since: Sequence[Block], private: bool) -> Page:
    """Return the card as a document."""
    name, contract = project.settings.project.name, records.contract
    classes = "" if contract.classes is None else f" ({', '.join(map(str, contract.classes[:10]))})"
    rows = int(records.metrics.get("train_rows", 0))
    lead = [
        f"It predicts {contract.target}{classes}, a {contract.problem} problem, from {len(contract.features)} columns. "
        f"{records.params.get('estimator', 'A model')} was fitted on {rows:,} rows of {_source(records, private)}.",
        *_headline(records),
        f"Written at {utc_now()}. `ml card {records.version}` writes the current card.",
    ]
    sections = [
        _use(project, records),
        _data(records, private),
        _making(records),
        _quality(records),
        _gates(records),
        _groups(records),
        _calibration(records),
        _importance(records),
        _limits(project, records),
        _production(records, since, private),
    ]
    return Page(f"{name}, version {records.version}", lead, sections, _front(project, records, private))


def _source(records: Records, private: bool) -> str:
    snapshot = records.snapshot
    return f"`{redact(show_uri(snapshot.source))}`" if private else f"snapshot {snapshot.digest[:12]}"


def _headline(records: Records) -> Iterator[str]:
    if (verdict := records.verdict) is None:
        return
    compared, word = verdict.verdict, "was refused by a gate" if verdict.refusal else "passed its gates"
    score = compared.scores["candidate"].get(compared.metric)
    shown = show_interval(score.value, score.low, score.high) if score else "unknown"
    yield f"It {word}: {compared.metric} {shown} on {compared.rows:,} rows that it was not trained on."


def _use(project: Project, records: Records) -> Section:
    card = project.settings.card
    given = [
        ("use", card.use),
        ("must not be used for", card.not_for),
        ("owner", card.owner),
        ("license", card.license),
    ]
    blocks: list[Block] = (
        [Rows(("", "as its owner describes it"), [(k, v) for k, v in given if v])]
        if any(value for _, value in given)
        else []
    )
    names = {"use": "its use", "not_for": "what it must not be used for", "owner": "its owner"}
    if missing := [setting for setting in names if not getattr(card, setting)]:
        blocks.append(
            f"Not described: {', '.join(names[setting] for setting in missing)}. Set "
            f"{', '.join(f'`{setting}`' for setting in missing)} in the section `[card]` of `config.toml`, and run "
            f"`ml card {records.version}`."
        )
    return Section("Intended use", "What is it for, what must it not be used for, and who is responsible?", blocks)


def _data(records: Records, private: bool) -> Section:
    snapshot, validation, support = records.snapshot, records.validation, records.support
    holdout = Holdout.model_validate_json(records.tags["holdout"])
    facts = [("source", _source(records, private))] if private else []
    facts += [("snapshot", f"{snapshot.digest}, read at {snapshot.created}")]
    facts.append(("rows read", f"{snapshot.rows:,}"))
    if validation:
        facts.append(("rows quarantined", f"{validation.bad:,} ({validation.bad_share:.2%}) broke the contract"))
        if validation.unlabelled:
            facts.append(("rows without a label", f"{validation.unlabelled:,}, left out"))
    facts.append(("rows trained on", f"{int(records.metrics.get('train_rows', 0)):,}"))
    facts.append(("rows held out", f"{holdout.split.holdout:.0%}, {SPLITS[holdout.split.by]}"))
    if holdout.cutoff:
        facts.append(("held out from", f"{holdout.cutoff:%Y-%m-%d %H:%M}"))
    period = "not known: no column has the role time"
    if support and support.first:
        period = f"{support.first} to {support.last}, of the rows trained on"
    facts.append(("period", period))
    roles: dict[str, list[str]] = {}
    for column in records.contract.columns:
        roles.setdefault(column.role, []).append(column.name)
    columns = [(role, f"{len(names):,}", _some(names)) for role, names in roles.items()]
    alarms = records.documents.get("leakage.json", {}).get("alarms", [])
    leaks = [f"Looks like a leak of the target, and was accepted: {_some(_texts(a['columns']))}." for a in alarms]
    return Section(
        "Data",
        "On which data, from where and from when, was it trained?",
        [Rows(("", "data"), facts), Rows(("role", "columns", "names"), columns), *leaks],
    )


def _texts(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else [str(name) for name in names]


def _some(names: Sequence[str]) -> str:
    left = len(names) - MOST_COLUMNS
    return ", ".join(names[:MOST_COLUMNS]) + (f" and {left:,} more" if left > 0 else "")


def _making(records: Records) -> Section:
    origin = records.documents.get("provenance.json", {})
    packages = origin.get("packages", {})
    facts = [("commit", records.tags["git_commit"])]
    if records.tags.get("patch_digest"):
        facts.append(("files", f"not committed; digest {records.tags['patch_digest']}"))
    facts += [("Python", str(origin.get("python"))), ("machine", str(origin.get("machine")))]
    facts.append(("packages", ", ".join(f"{name} {packages[name]}" for name in SHAPING if name in packages)))
    facts += [("estimator", records.params.get("estimator", "")), ("seed", records.params.get("train.seed", ""))]
    facts.append(("MLflow run", records.run_id))
    choice = records.documents.get("choice.json", {})
    params = ", ".join(f"{key} = {value}" for key, value in choice.get("params", {}).items())
    if params:
        facts.append(("parameters", params))
    compared = [choice["reason"]] if choice.get("trials") else []
    return Section(
        "Code and packages",
        "By what was it made, and can it be made again?",
        [
            Rows(("", "record"), [fact for fact in facts if fact[1]]),
            *compared,
            f"`ml reproduce {records.version}` trains it again from this record, and compares every metric. "
            f"The versions of all {len(packages):,} packages are in `provenance.json` of the MLflow run.",
        ],
    )


def _quality(records: Records) -> Section:
    title, question = "Metrics", "How good is it, and how certain is that?"
    if records.verdict is None:
        return Section(title, question, [UNJUDGED.format(version=records.version)])
    compared = records.verdict.verdict
    rules = metrics_of(compared.problem)
    who = [name for name in ("candidate", "champion", "dummy") if name in compared.scores]
    heads = {"candidate": "this version", "champion": "in production before", "dummy": "dummy model"}
    rows = []
    for name in sorted(compared.scores["candidate"], key=lambda name: name != compared.metric):
        cells = [compared.scores[one].get(name) for one in who]
        better = "higher" if name not in rules or rules[name].greater_is_better else "lower"
        rows.append((name, better, *(show_interval(c.value, c.low, c.high) if c else "–" for c in cells)))
    confidence = records.documents.get("basis.json", {}).get("confidence", 0.95)
    return Section(
        title,
        question,
        [
            f"On {compared.rows:,} held-out rows. In brackets is the {confidence:.0%} interval, by the bootstrap over "
            f"these rows. {compared.metric} decides. A dummy model knows only the distribution of the target.",
            Rows(("metric", "better", *(heads[one] for one in who)), rows),
            _pictures(records, QUALITY),
        ],
    )


def _pictures(records: Records, names: Sequence[str]) -> Pictures:
    return Pictures({name.replace("-", " "): records.plots[name] for name in names if name in records.plots})


def _gates(records: Records) -> Section:
    verdict, title, question = records.verdict, "Gates", "What had to be met before it was deployed, and was it?"
    if verdict is None:
        return Section(title, question, [UNJUDGED.format(version=records.version)])
    rows = [(row["gate"], row["ruling"], row["figure"], row["limit"], row["explanation"]) for row in gate_rows(verdict)]
    blocks: list[Block] = [Rows(("gate", "ruling", "figure", "limit", "explanation"), rows)]
    return Section(title, question, [*blocks, *([verdict.refusal] if verdict.refusal else [])])


def _groups(records: Records) -> Section:
    verdict, title, question = records.verdict, "Slices and fairness", "For whom is it worse?"
    if verdict is None:
        return Section(title, question, [UNJUDGED.format(version=records.version)])
    problem = verdict.verdict.problem
    sensitive = [column.name for column in records.contract.features if column.role == "sensitive"]
    blocks: list[Block] = []
    if verdict.slices:
        rows = slice_rows(verdict.slices, problem)
        blocks = [
            f"The {name_error(problem)} in parts of the held-out rows, with the 95% interval of the difference to the "
            "other rows. A slice of the kind weak was searched, and confirmed on other rows.",
            Rows(tuple(rows[0]), [tuple(row.values()) for row in rows]),
            _pictures(records, ["slices"]),
        ]
    if not any(one.kind == "weak" for one in verdict.slices):
        blocks.append("No slice of one column was found in which it is worse than in the other rows beyond chance.")
    if not sensitive:
        blocks.append(
            "No feature has the role sensitive, so it was not compared between groups of people. "
            "A sensitive column that is not a feature is not examined."
        )
    return Section(title, question, blocks)


def _calibration(records: Records) -> Section:
    title, question = "Calibration", "Can its probabilities, or its values, be taken as they are?"
    found = records.documents.get("calibration.json")
    if not found:
        why = UNJUDGED.format(version=records.version) if records.verdict is None else UNRECORDED
        return Section(title, question, [why])
    rows = [(f"{count:,.0f}", show_figure(p), show_figure(o), show_figure(o - p)) for p, o, count in found["data"]]
    total = sum(count for *_, count in found["data"])
    away = sum(abs(observed - predicted) * count for predicted, observed, count in found["data"]) / total
    what = {
        "binary": f"the probability of {(records.contract.classes or ('', ''))[1]} with the share that is it",
        "multiclass": "the probability of the predicted class with the share of predictions that are right",
        "regression": "the predicted values with the true ones",
    }[records.contract.problem]
    return Section(
        title,
        question,
        [
            f"The held-out rows are in tenths, by the prediction. The table compares {what}. "
            f"On average they differ by {show_figure(away)}.",
            Rows(("rows", "predicted", "observed", "difference"), rows),
            _pictures(records, CALIBRATION),
        ],
    )


def _importance(records: Records) -> Section:
    title, question = "Importance", "Which columns does it rely on?"
    rows = records.documents.get("importance.json", {}).get("data", [])
    if not rows or records.verdict is None:
        return Section(title, question, ["The importance of the columns is not recorded."])
    metric = records.verdict.verdict.metric
    shown = [(name, show_interval(value, low, high)) for name, value, low, high in rows[:MOST_COLUMNS]]
    return Section(
        title,
        question,
        [
            f"How much worse {metric} gets if the values of a column are put in random order, with its interval. "
            "Columns that hold the same information share their importance. It does not say that a column is a cause.",
            Rows(("column", f"loss of {metric}"), shown),
            _pictures(records, ["importance"]),
        ],
    )


def _limits(project: Project, records: Records) -> Section:
    support, monitor = records.support, project.settings.monitor
    blocks: list[Block] = []
    if support is None:
        blocks.append(f"The values of the training rows are not known. {UNRECORDED}")
    else:
        columns = [*support.columns[:MOST_COLUMNS], support.target]
        rows = []
        for one in columns:
            name = f"{one.name} (target)" if one is support.target else one.name
            values = ", ".join(f"{value} {share:.0%}" for value, share in one.common.items())
            inside = f"{one.low} to {one.high}" if one.low is not None else values or "no common value"
            rows.append((name, one.kind, inside, f"{one.distinct:,}", f"{one.missing:.1%}"))
        blocks += [
            f"It was fitted on these values; predictions for others were not tested. Ranges hold {1 - 2 * TAIL:.0%} of "
            f"the {support.rows:,} training rows, texts are the most common ones.",
            Rows(("column", "kind", "range or values", "different values", "missing"), rows),
        ]
        if len(support.columns) > MOST_COLUMNS:
            blocks.append(
                f"{len(support.columns) - MOST_COLUMNS:,} more columns are in `support.json` of the MLflow run."
            )
    classes = records.contract.classes
    blocks.append(
        [
            *([f"It predicts no other classes than {_some(list(map(str, classes)))}."] if classes else []),
            "A request whose values break the contract is refused. Values that training never saw are answered, "
            "and counted.",
            f"Drift of a column is measured against held-out rows, in windows of at least {monitor.min_rows:,} rows: "
            f"a distance beyond {monitor.distance:g}, {monitor.missing:.0%} more missing values, or "
            f"{monitor.unseen:.0%} more values that training never saw.",
            "The metrics hold for rows like the held-out ones. They do not hold where the relation of the columns to "
            "the target has changed; only labels show that.",
        ]
    )
    return Section("Limits", "Where should it not be trusted?", blocks)


def _production(records: Records, since: Sequence[Block], private: bool) -> Section:
    history = list(_history(records.champion, private))
    now = f"At the time of writing, version {records.champion.version} is in production." if records.champion else ""
    blocks: list[Block] = [now or "At the time of writing, nothing is in production."]
    if history:
        head = ("version", "from", "until", *(("by", "how", "why") if private else ()))
        blocks.append(Rows(head, history))
    blocks += since or [f"Drift since its deployment is in the card that `ml card {records.version}` writes."]
    return Section("Production", "What was in production when, and have the data changed since?", blocks)


def _history(champion: Champion | None, private: bool) -> Iterator[tuple[str, ...]]:
    """Yield what was in production when, the newest first."""
    moves = [change for change in (champion.history if champion else ()) if change.action != "withdraw"]
    ends = [change.at for change in moves[1:]] + ["now"] * bool(moves)
    for change, end in reversed(list(zip(moves, ends, strict=True))):
        more = (change.who, change.action, change.why) if private else ()
        yield (version_of(change.to), change.at, end, *more)


def _front(project: Project, records: Records, private: bool) -> dict[str, Any]:
    """Return the front matter in the form of Hugging Face."""
    task = "tabular-regression" if records.contract.problem == "regression" else "tabular-classification"
    front: dict[str, Any] = {"library_name": "sklearn", "pipeline_tag": task, "tags": [task, "sklearn", "onnx"]}
    if project.settings.card.license:
        front = {"license": project.settings.card.license, **front}
    if records.verdict is None:
        return front
    name = project.settings.project.name
    metrics = [
        {"type": metric, "name": metric, "value": score.value}
        for metric, score in records.verdict.verdict.scores["candidate"].items()
    ]
    source = _source(records, private).strip("`")
    dataset = {"name": f"held-out rows of {source}", "type": "tabular", "revision": records.snapshot.digest}
    result = {"task": {"type": task}, "dataset": dataset, "metrics": metrics}
    return {**front, "model-index": [{"name": f"{name}-{records.version}", "results": [result]}]}
