"""Shared fixtures of the end-to-end tests: projects and one Prefect server."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Render

from e2e.support import Project, make_project

Make = Callable[..., Project]


@pytest.fixture(scope="session")
def make(render: Render, prefect: str, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make a project of one's own: `make(rows=1_000)`; `rows=None` leaves the template's sample."""

    def make_one(rows: int | None = 1_500, **answers: str) -> Project:
        folder = tmp_path_factory.mktemp("e2e") / "shop-churn"
        return make_project(render(**answers), folder, rows, PREFECT_API_URL=prefect)

    return make_one


@pytest.fixture(scope="session")
def trained_on_sample(make: Make) -> Project:
    """A project with version 1 in production, saved so that tests can restore it."""
    project = make()
    project.run()
    return project.save()


@pytest.fixture(scope="module")
def trained_once(trained_on_sample: Project) -> Project:
    """The initial state of `trained`; a module may override it."""
    return trained_on_sample


@pytest.fixture
def trained(trained_once: Project) -> Project:
    """A project with version 1 in production, restored if an earlier test changed it."""
    return trained_once.restore()


@pytest.fixture(scope="module")
def root_of_data() -> Path:
    """The folder of real tables."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder
