"""What is generated: the exact files, rendered, formatted, and nothing executed on the way."""

import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from template_support import REPOSITORY, git, run_python

OURS = {
    ".copier-answers.yml",
    ".dockerignore",
    ".github/workflows/ci.yml",
    ".github/workflows/deploy.yml",
    ".github/workflows/retrain.yml",
    ".github/workflows/template.yml",
    ".gitignore",
    "Dockerfile",
    "README.md",
    "config.toml",
    "ops/alerts.yaml",
    "ops/compose.yaml",
    "ops/grafana/dashboards/service.json",
    "ops/grafana/provisioning/dashboards/dashboards.yaml",
    "ops/grafana/provisioning/datasources/prometheus.yaml",
    "ops/postgres.sql",
    "ops/prometheus.yaml",
    "prefect.yaml",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/test_contract.py",
    "tests/test_model.py",
    "tests/test_pipeline.py",
    "tests/test_service.py",
}
PACKAGES = {"flows": REPOSITORY / "flows", **{n: REPOSITORY / "template" / n for n in ("model", "service")}}


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and ".git" not in p.parts}


def copied_packages() -> set[str]:
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_project_has_exactly_the_expected_files(render):
    assert files_of(render()) == OURS | copied_packages()


def test_python_is_copied_byte_for_byte(render):
    project = render()
    for name, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            assert (project / name / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


def test_flows_of_the_template_is_a_link_to_the_repositorys_own():
    link = REPOSITORY / "template" / "flows"
    assert link.is_symlink()
    assert link.readlink() == Path("../flows")


def test_nothing_is_left_unrendered(render):
    project = render()
    for name in files_of(project):
        text = (project / name).read_text(encoding="utf-8")
        assert "{%" not in text, name
        copied = REPOSITORY / "template" / name  # byte for byte: Grafana and Prometheus have such braces of their own
        assert "{{" not in text.replace("${{", "") or (copied.is_file() and copied.read_text("utf-8") == text), name
        assert not name.endswith(".jinja")
        assert "{{" not in name


def test_no_python_file_carries_jinja():
    for folder in (*PACKAGES.values(), REPOSITORY / "template" / "tests"):
        for path in folder.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            compile(text, str(path), "exec")
            assert "{%" not in text, path
    assert not list((REPOSITORY / "template").rglob("*.py.jinja"))


@pytest.mark.parametrize("problem", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_data_files_parse(render, problem, version):
    project = render(problem=problem, python_version=version)
    for path in (project / "pyproject.toml", project / "config.toml"):
        tomllib.loads(path.read_text(encoding="utf-8"))
    for path in (project / ".copier-answers.yml", *(project / ".github").rglob("*.yml"), *project.rglob("*.yaml")):
        yaml.safe_load(path.read_text(encoding="utf-8"))


def test_text_files_end_with_one_newline_and_have_no_trailing_spaces(render):
    project = render()
    for name in files_of(project):
        text = (project / name).read_text(encoding="utf-8")
        assert not text or (text.endswith("\n") and not text.endswith("\n\n")), name
        assert not [line for line in text.splitlines() if line != line.rstrip()], name


def test_project_is_formatted_and_lint_clean(render):
    project = render()
    for command in (["format", "--check", "--diff"], ["check", "--output-format=concise"]):
        done = run_python(project, "-m", "ruff", *command, "--no-cache", ".")
        assert done.returncode == 0, done.stdout + done.stderr


def test_project_is_type_clean(render, tmp_path):
    done = run_python(render(), "-m", "mypy", "--cache-dir", str(tmp_path / "mypy"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_scaffolding_executes_nothing():
    settings = yaml.safe_load((REPOSITORY / "copier.yml").read_text(encoding="utf-8"))
    assert not {"_tasks", "_migrations", "_jinja_extensions", "_exclude"} & set(settings)
    assert settings["_envops"]["undefined"] == "jinja2.StrictUndefined"
    assert settings["_min_copier_version"]


def test_copier_says_what_to_type_next(template, tmp_path):
    project = tmp_path / "my project"
    command = ["-m", "copier", "copy", "--defaults", "--vcs-ref", "HEAD", str(template), str(project)]
    said = run_python(tmp_path, *command).stderr
    assert f"cd '{project}'" in said
    assert "uv run ml run" in said


def test_an_undefined_name_in_a_template_file_is_an_error(template, tmp_path):
    copy = tmp_path / "broken"
    git(tmp_path, "clone", "--quiet", str(template), str(copy))
    (copy / "template" / "extra.toml.jinja").write_text("{{ mistyped }}\n", encoding="utf-8")
    git(copy, "add", "--all")
    git(copy, "commit", "--quiet", "--message", "broken")
    done = run_python(tmp_path, "-m", "copier", "copy", "--defaults", "--vcs-ref", "HEAD", str(copy), "out")
    assert done.returncode != 0
    assert "'mistyped' is undefined" in done.stderr


def test_no_lock_is_committed_here():
    tracked = subprocess.run(["git", "ls-files", "*uv.lock"], cwd=REPOSITORY, capture_output=True, text=True)
    assert tracked.stdout == ""
