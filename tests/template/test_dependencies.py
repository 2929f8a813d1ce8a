"""The bounds of dependencies: each has a reason, they can be resolved, and a raised bound is installed."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from template_support import REPOSITORY, clean_environment, copy_working_tree, find_uv

from ondol.storage.remote_files import EXTRAS

UV = find_uv()
VARIANTS = [  # of Python and platform, on which a package may need another
    {"python_version": version, "python_full_version": f"{version}.0", "sys_platform": system, "platform_system": name}
    for version in ("3.11", "3.12", "3.13")
    for system, name in (("linux", "Linux"), ("darwin", "Darwin"), ("win32", "Windows"))
]
PLATFORMS = {  # what a wheel calls it, and what markers do
    "manylinux_2_28_x86_64": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "manylinux_2_28_aarch64": {"sys_platform": "linux", "platform_machine": "aarch64"},
    "macosx_14_0_arm64": {"sys_platform": "darwin", "platform_machine": "arm64"},
}


def run_uv(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    if UV is None:
        pytest.skip("resolving dependencies needs the uv binary: pip install uv")
    environment = clean_environment() | {"UV_PYTHON": sys.executable, "UV_SYSTEM_CERTS": "1"}
    return subprocess.run([UV, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def uv_settings(project: Path) -> dict[str, list[str]]:
    return dict(tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"])


def test_every_bound_has_its_reason_beside_it():
    files = [REPOSITORY / "pyproject.toml", *REPOSITORY.glob("packages/*/pyproject.toml")]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines() if "<" in line]
    bounds = [line for line in lines if not line.startswith("requires")]
    assert len(bounds) > 40
    for line in bounds:
        assert re.fullmatch(r'(?:[a-z0-9]+ = \[)?\s*"[^"<]+<[\d.]+"(?:,|\]),?\s+# \S.*', line), line


def test_every_package_that_the_repository_adds_has_an_upper_bound():
    groups = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    bounded = {name for path in REPOSITORY.glob("packages/*/pyproject.toml") for name in bounded_in(path)}
    for package in groups["dev"]:
        if isinstance(package, str):
            name = Requirement(package).name
            assert ("<" in package) is (name not in bounded), f"{package} needs one upper bound, here or in packages/"


def bounded_in(path: Path) -> set[str]:
    """Return the names of the packages that a pyproject.toml bounds, in its dependencies and its extras."""
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    return {requirement.name for requirement in map(Requirement, listed) if "<" in str(requirement.specifier)}


def test_every_optional_library_is_in_the_extra_that_a_message_names():
    path = REPOSITORY / "packages" / "ondol" / "pyproject.toml"
    extras = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert Requirement(package).name in {Requirement(line).name for line in extras[extra]}


@pytest.mark.parametrize("missing", [None, *PLATFORMS])
def test_a_version_without_a_wheel_for_a_platform_is_not_chosen(render, tmp_path, missing):
    """`uv add` resolves for all platforms of a project, not only for the current one."""
    for version in ("1.0", "2.0"):
        for platform in PLATFORMS:
            if version == "1.0" or platform != missing:
                write_wheel(tmp_path / "index", "sky", version, platform)
    settings = uv_settings(render())["required-environments"]
    lines = ["[project]", 'name = "p"', 'version = "1"', 'requires-python = ">=3.11"', "dependencies = []"]
    lines += ["[tool.uv]", f"required-environments = {settings}"]
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "pyproject.toml").write_text("\n".join(lines), encoding="utf-8")
    index = ("--offline", "--no-index", "--find-links", str(tmp_path / "index"))
    for words in (
        ("add", "--no-sync", *index, "sky"),
        ("export", "--locked", "--no-emit-project", "--no-hashes", *index),
    ):
        done = run_uv(tmp_path / "p", *words)
        assert done.returncode == 0, done.stderr
    for platform, markers in PLATFORMS.items():
        found = [Requirement(line) for line in done.stdout.splitlines() if line.startswith("sky")]
        (chosen,) = [one for one in found if one.marker is None or one.marker.evaluate(markers)]
        assert str(chosen.specifier) == ("==1.0" if platform == missing else "==2.0")


def write_wheel(index: Path, name: str, version: str, platform: str) -> None:
    index.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    tag = f"py3-none-{platform}"
    with zipfile.ZipFile(index / f"{name}-{version}-{tag}.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")


def needed_packages() -> set[str]:
    """Return the names of the engine's dependencies, recursively, with every extra, on every platform.

    What an installed package needs is in its metadata; an extra that is not installed counts with its package alone.
    """
    found = dict[str, set[str]]()
    waiting = [(name, extra) for name in ("ondol", "ondol-serving") for extra in ("", *read_package(name)[1])]
    while waiting:
        name, extra = waiting.pop()
        if extra in found.setdefault(name, set()):
            continue
        found[name].add(extra)
        for line in requirements_of(name, extra):
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate(variant | {"extra": extra}) for variant in VARIANTS):
                waiting += [(canonicalize_name(requirement.name), one) for one in ("", *requirement.extras)]
    return set(found)


def read_package(name: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the dependencies of a package of this repository, and those of each of its extras."""
    project = tomllib.loads((REPOSITORY / "packages" / name / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["dependencies"], project["optional-dependencies"]


def requirements_of(name: str, extra: str) -> list[str]:
    if name in ("ondol", "ondol-serving"):
        dependencies, extras = read_package(name)
        return extras[extra] if extra else dependencies
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:
        return []


def taken_slugs() -> set[str]:
    return set(yaml.safe_load((REPOSITORY / "copier.yml").read_text(encoding="utf-8"))["taken_slugs"]["default"])


def test_no_project_can_have_the_name_of_a_package_that_it_installs():
    """uv takes the project for the package then, and finds no versions that fit."""
    assert sorted(needed_packages() - taken_slugs()) == [], "add them to taken_slugs in copier.yml"


@pytest.mark.slow
def test_bounds_resolve_together_for_every_python_and_platform(render, tmp_path):
    """With every extra and every group, for Python 3.11 to 3.13."""
    shutil.copytree(render(), tmp_path / "p")
    done = run_uv(tmp_path / "p", "lock")
    assert done.returncode == 0, done.stderr
    locked = tomllib.loads((tmp_path / "p" / "uv.lock").read_text(encoding="utf-8"))
    names = {package["name"] for package in locked["package"]}
    assert {name for path in REPOSITORY.glob("packages/*/pyproject.toml") for name in bounded_in(path)} <= names
    assert names - {"customer-churn"} <= taken_slugs()


@pytest.mark.slow
def test_environment_follows_a_raised_bound(tmp_path):
    """`make demo` and `make test` in a clone with a .venv from an earlier version."""
    clone = copy_working_tree(tmp_path / "clone")
    pyproject = clone / "pyproject.toml"
    newer = pyproject.read_text(encoding="utf-8")

    def set_up(text: str) -> tuple[int, ...]:
        pyproject.write_text(text, encoding="utf-8")
        environment = clean_environment() | {"PYTHON": sys.executable}
        done = subprocess.run(
            [clone / ".ci" / "setup", "scaffold"], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (found,) = clone.glob(".venv/lib/python3*/site-packages/copier-*.dist-info")
        return tuple(int(part) for part in re.findall(r"\d+", found.name))[:2]

    assert set_up(newer.replace("copier>=9.8,<10", "copier>=9.8,<9.9")) == (9, 8)
    assert set_up(newer) > (9, 8)
