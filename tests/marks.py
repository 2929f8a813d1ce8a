"""Marks for parameters."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(kept: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Return `cases` as parameters: those in `kept` run in `make test` too, the others in `make test-all` alone.

    A tuple holds the values of several parameters.
    """
    always = list(kept)
    return [case if case in always else pytest.param(*_values(case), marks=pytest.mark.slow) for case in cases]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
