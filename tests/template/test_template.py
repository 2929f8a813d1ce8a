"""How a project is made: Python is copied unchanged, nothing is executed, a mistake in a template is refused."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from template_support import PACKAGES, REPOSITORY, git, run_python


def test_python_is_copied_byte_for_byte(render):
    project = render()
    for name, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            assert (project / name / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize(
    ("name", "target"),
    [("template/flows", "../flows"), ("template/vendor", "../packages"), ("packages/ondol/docs", "../../docs")],
)
def test_what_the_repository_uses_itself_is_a_link_in_the_template(name, target):
    link = REPOSITORY / name
    assert link.is_symlink()
    assert link.readlink() == Path(target)


def test_the_documentation_of_its_version_comes_with_a_project(render):
    project = render()
    for readme in (project / "README.md", project / "vendor" / "ondol" / "README.md"):
        linked = re.findall(r"\]\(([^)#:]+)\)", readme.read_text(encoding="utf-8"))
        assert any(name.endswith("docs/index.md") for name in linked)
        assert [name for name in linked if not (readme.parent / name).is_file()] == []
    docs = project / "vendor" / "ondol" / "docs"
    assert {path.suffix for path in docs.rglob("*") if path.is_file()} == {".md", ".svg"}
    assert sum(path.stat().st_size for path in docs.rglob("*.md")) < 700_000


def test_no_python_file_carries_jinja():
    for folder in (*PACKAGES.values(), REPOSITORY / "template" / "tests"):
        for path in folder.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            compile(text, str(path), "exec")
            assert "{%" not in text, path
    assert not list((REPOSITORY / "template").rglob("*.py.jinja"))


def test_scaffolding_executes_nothing():
    settings = yaml.safe_load((REPOSITORY / "copier.yml").read_text(encoding="utf-8"))
    assert not {"_tasks", "_migrations", "_jinja_extensions"} & set(settings)
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
