"""The workflows: pinned, without rights that they do not need, bounded in time, and no more than a developer types."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from template_support import REPOSITORY

OURS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
THEIRS = sorted((REPOSITORY / "template" / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = OURS + THEIRS
BIN = Path(sys.executable).parent


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def load(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)


def test_there_are_workflows_here_and_in_projects():
    assert {p.name for p in OURS} >= {"ci.yml", "weekly.yml"}
    assert {p.name for p in THEIRS} >= {"ci.yml"}


@every_workflow
def test_actions_are_pinned_by_commit_with_their_version_beside_it(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_an_action_has_one_commit_everywhere():
    commits: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for action, commit in re.findall(r"uses: (\S+)@(.+)", path.read_text(encoding="utf-8")):
            commits.setdefault(action, set()).add(commit)
    assert {action: len(found) for action, found in commits.items() if len(found) > 1} == {}


@every_workflow
def test_no_right_is_given_to_all_jobs(path):
    assert load(path)["permissions"] == {}
    for job in load(path)["jobs"].values():
        assert "permissions" in job


@every_workflow
def test_checkout_keeps_no_credentials(path):
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"


@every_workflow
def test_runs_are_bounded(path):
    workflow = load(path)
    assert workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert 0 < int(job["timeout-minutes"]) <= 120, name


@every_workflow
def test_one_final_job_fails_unless_all_others_succeeded(path):
    jobs = load(path)["jobs"]
    (final,) = [name for name in jobs if name.endswith("-ok")]
    assert set(jobs[final]["needs"]) == set(jobs) - {final}
    assert jobs[final]["if"] == "always()"
    (step,) = jobs[final]["steps"]
    results = " ".join(["success"] * len(jobs[final]["needs"]))
    for said, passes in ((results, True), (results.replace("success", "failure", 1), False), ("", False)):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", step["run"]], env={"RESULTS": said})
        assert (done.returncode == 0) is passes


@every_workflow
def test_every_step_is_one_command(path):
    for step in steps(path):
        assert "\n" not in step.get("run", ""), step["run"]
        assert "${{" not in step.get("run", ""), step["run"]


def test_projects_ci_types_what_the_readme_of_a_project_would():
    commands = [step["run"] for path in THEIRS for step in steps(path) if "run" in step]
    for command in ("uv lock --check", "uv run ruff check .", "uv run mypy", "uv run pytest", "uv run ml run"):
        assert command in commands


def test_workflows_have_no_known_weakness():
    command = [BIN / "zizmor", "--offline", "--quiet", "--no-progress", ".github", "template/.github"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_workflows_keep_their_schema(schema):
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", schema, *WORKFLOWS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
