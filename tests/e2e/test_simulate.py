"""The loop closes by itself, through the real service, server, worker and automation, and rests where nothing moves."""

import pytest

from e2e.conftest import Make
from e2e.support import succeed

pytestmark = pytest.mark.slow


def test_loop_closes_by_itself(make: Make) -> None:
    project = make(rows=None)
    done = succeed(project.ml("simulate", "--weeks", "6", timeout=1200))
    assert "the automation retrained" in done.stdout.replace("\n", " ")
    assert (project.root / ".ml" / "simulation" / "timeline.png").exists()
    assert not project.champion


def test_nothing_is_retrained_where_nothing_moves(make: Make) -> None:
    done = succeed(make(rows=None).ml("simulate", "--weeks", "4", "--no-shift", timeout=1200))
    assert "Nothing moved, and nothing was retrained." in done.stdout.replace("\n", " ")
