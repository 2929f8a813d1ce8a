"""The questions: refused answers with their messages, and the effect of each answer."""

import os
import pty
import select
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from copier import run_copy
from marks import slow_but
from template_support import REPOSITORY

SLUG_RULE = "ASCII lower-case letters, digits, hyphens or underscores"
BAD = [
    ("project_name", "", "1 to 80 characters"),
    ("project_name", " \n ", "1 to 80 characters"),
    ("project_name", "x" * 81, "1 to 80 characters"),
    ("project_name", "bell \a", "without control characters"),
    ("project_slug", "Customer-Churn", SLUG_RULE),
    ("project_slug", "customer churn", SLUG_RULE),
    ("project_slug", "고객", SLUG_RULE),
    ("project_slug", "1st", "begin with a letter"),
    ("project_slug", "-churn", "begin with a letter"),
    ("project_slug", "churn-", "end with a letter or digit"),
    ("project_slug", "churn\n", "end with a letter or digit"),
    ("project_slug", "a--b", "no two hyphens or underscores in a row"),
    ("project_slug", "a" * 51, "1 to 50"),
    ("project_slug", "../churn", SLUG_RULE),
    ("project_slug", "mlflow", "a package that the project itself installs: give any other, such as ml-mlflow"),
    ("project_slug", "attrs", "give any other, such as ml-attrs"),
    ("project_slug", "prefect-churn", 'work pools that begin with "prefect": give any other, such as ml-prefect-churn'),
    ("project_slug", "scikit_learn", "give any other"),
    ("description", "", "1 to 400 characters"),
    ("description", "x" * 401, "1 to 400 characters"),
    ("description", "escape \x1b[0m", "without control characters"),
    ("problem", "ranking", "['binary', 'multiclass', 'regression']"),
    ("problem", "", "['binary', 'multiclass', 'regression']"),
    ("python_version", "3.10", "['3.11', '3.12', '3.13']"),
    ("python_version", "3.14", "['3.11', '3.12', '3.13']"),
    ("python_version", "3", "['3.11', '3.12', '3.13']"),
]
NASTY = [
    'He said "hi"',
    "it's a \\ back\\slash \\n",
    "two\nlines\tand a tab",
    "이탈 예측 📈 👩‍🔬",
    "# *bold* <b>tag</b> & `code` [x](y)",
    "{{ not }} {% jinja %} ${{ github }}",
    "yes: [a, b] - 'c' # d",
    "]] = \"\"\" '''",
    "%(percent)s %d",
]


def copy(template: Path, folder: Path, **answers: str) -> Path:
    run_copy(str(template), folder, data=answers, defaults=True, vcs_ref="HEAD", quiet=True)
    return folder


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The questions and the files that hold answers, without the code: no repository that is cloned for each answer."""
    folder = tmp_path_factory.mktemp("asking")
    shutil.copy(REPOSITORY / "copier.yml", folder)
    without = shutil.ignore_patterns("flows", "model", "service", "tests", "vendor")
    shutil.copytree(REPOSITORY / "template", folder / "template", ignore=without)
    return folder


@pytest.fixture
def answer(asking: Path, tmp_path: Path) -> Callable[..., Path]:
    """Render those files with the given answers."""

    def render_one(**answers: str) -> Path:
        run_copy(str(asking), tmp_path / "customer-churn", data=answers, defaults=True, quiet=True)
        return tmp_path / "customer-churn"

    return render_one


@pytest.mark.parametrize(("question", "value", "allowed"), BAD)
def test_bad_answer_is_refused_by_name_with_what_is_allowed(answer, tmp_path, question, value, allowed):
    with pytest.raises(ValueError) as refused:
        answer(**{question: value})
    assert question in str(refused.value)
    assert allowed in " ".join(str(refused.value).split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", slow_but(["고객 이탈"], ["고객 이탈", "2024", "!?", "📈"]))
def test_name_without_ascii_letters_needs_a_slug(template, tmp_path, name):
    with pytest.raises(ValueError, match='"project_slug" is required'):
        copy(template, tmp_path / "churn", project_name=name)
    project = copy(template, tmp_path / "churn", project_name=name, project_slug="churn")
    assert name in (project / "README.md").read_text(encoding="utf-8")


def test_name_without_ascii_letters_is_asked_for_a_slug_on_a_terminal(template, tmp_path):
    command = [sys.executable, "-m", "copier", "copy", "--vcs-ref", "HEAD", str(template), str(tmp_path / "churn")]
    answers = [("in any language", "\x15고객 이탈"), ("Short name", "churn")]
    said = type_answers(command, answers + [(asked, "") for asked in ("model for", "predict from", "Oldest Python")])
    assert "Traceback" not in said
    assert 'name = "churn"' in (tmp_path / "churn" / "config.toml").read_text(encoding="utf-8")
    assert "고객 이탈" in (tmp_path / "churn" / "README.md").read_text(encoding="utf-8")


def type_answers(command: list[str], answers: list[tuple[str, str]], seconds: float = 90) -> str:
    """Run a command on a separate terminal, type each answer when its question appears; return the output."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "xterm", "COLUMNS": "200"}
        os.execv(command[0], command)
    shown, seen, end = "", 0, time.monotonic() + seconds
    waiting = list(answers)
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the end, on Linux
            break
        if b"\x1b[6n" in data:  # where is the cursor?
            os.write(terminal, b"\x1b[1;1R")
        shown += data.decode(errors="replace")
        if waiting and waiting[0][0] in shown[seen:]:
            seen = len(shown)
            time.sleep(0.3)  # until the prompt reads keys
            os.write(terminal, waiting.pop(0)[1].encode() + b"\r")
    else:
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return shown


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Customer churn", "customer-churn"),
        ("Prefect", "ml-prefect"),
        ("Click", "ml-click"),
        ("고객 Churn 예측", "churn"),
        ("y" * 49 + " z", "y" * 49),
        pytest.param("  Customer   Churn 2! ", "customer-churn-2", marks=pytest.mark.slow),
        pytest.param("Prefect " + "y" * 38 + " z z", "ml-prefect-" + "y" * 38, marks=pytest.mark.slow),
        pytest.param("churn_model", "churn_model", marks=pytest.mark.slow),
        pytest.param("a _ b", "a-b", marks=pytest.mark.slow),
        pytest.param("2nd try", "nd-try", marks=pytest.mark.slow),
        pytest.param("x" * 70, "x" * 50, marks=pytest.mark.slow),
    ],
)
def test_slug_is_derived_from_the_name(answer, name, slug):
    assert read_toml(answer(project_name=name) / "pyproject.toml")["project"]["name"] == slug


def test_name_is_derived_from_the_folder(template, tmp_path):
    project = copy(template, tmp_path / "house_prices")
    assert (project / "README.md").read_text(encoding="utf-8").startswith("# House prices\n")
    assert read_toml(project / "config.toml")["project"]["name"] == "house-prices"


@pytest.mark.parametrize("text", slow_but([NASTY[0], NASTY[2], NASTY[5]], NASTY))
def test_any_name_and_description_give_valid_files(answer, text):
    project = answer(project_name=text, project_slug="churn", description=text)
    line = " ".join(text.split())
    assert read_toml(project / "pyproject.toml")["project"]["description"] == f"{line}: {line}"
    assert read_toml(project / "config.toml")["project"]["name"] == "churn"
    answers = yaml.safe_load((project / ".copier-answers.yml").read_text(encoding="utf-8"))
    assert (answers["project_name"], answers["description"]) == (text, text)
    heading = (project / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert heading.removeprefix("# ").replace("&lt;", "<").replace("&amp;", "&") == line


def read_toml(path: Path) -> dict:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def changed(first: Path, second: Path) -> set[str]:
    """Return the files that differ, without the record of the answers."""
    names = {p.relative_to(first).as_posix() for p in first.rglob("*") if p.is_file()}
    different = {n for n in names if (first / n).read_bytes() != (second / n).read_bytes()}
    return different - {".copier-answers.yml"}


@pytest.mark.parametrize(
    ("question", "answer", "files"),
    [
        ("project_name", "Another name", {"README.md", "pyproject.toml"}),
        (
            "project_slug",
            "another",
            {
                "README.md",
                "config.toml",
                "ops/compose.objects.yaml",
                "ops/compose.yaml",
                "prefect.yaml",
                "pyproject.toml",
            },
        ),
        ("description", "Another purpose.", {"README.md", "pyproject.toml"}),
        ("problem", "multiclass", {"config.toml"}),
        ("problem", "regression", {"config.toml"}),
        ("python_version", "3.12", {"README.md", "pyproject.toml"}),
        ("python_version", "3.13", {"README.md", "pyproject.toml"}),
    ],
)
def test_each_answer_changes_a_file_that_runs(render, question, answer, files):
    given = {"project_slug": "customer-churn"} if question == "project_name" else {}  # it follows the name
    assert changed(render(), render(**given, **{question: answer})) == files


@pytest.mark.parametrize(
    ("problem", "target"), [("binary", "churned"), ("multiclass", "next_plan"), ("regression", "next_spend")]
)
def test_problem_names_the_target_of_the_sample(render, problem, target):
    from ondol.config import load_settings
    from ondol.contract import describe, load_schema

    settings = load_settings(render(problem=problem))
    assert (settings.data.problem, settings.data.target) == (problem, target)
    assert describe(load_schema(), settings.data.target, settings.data.problem).target_column.name == target


def test_python_version_is_the_oldest_that_the_project_accepts(render):
    for version in ("3.11", "3.12", "3.13"):
        project = read_toml(render(python_version=version) / "pyproject.toml")
        assert project["project"]["requires-python"] == f">={version},<3.14"


def test_every_question_has_a_help_line_and_a_default():
    settings = yaml.safe_load((REPOSITORY / "copier.yml").read_text(encoding="utf-8"))
    asked = {name: details for name, details in settings.items() if not name.startswith("_")}
    questions = {name: details for name, details in asked.items() if details.get("when") is not False}
    assert list(questions) == ["project_name", "project_slug", "description", "problem", "python_version"]
    for name, details in questions.items():
        assert details["help"] and details["default"], name
        assert "validator" in details or "choices" in details, name
