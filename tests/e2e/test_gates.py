"""A worse model is refused, and the champion serves on."""

import numpy as np
import pandas as pd
import pytest

from e2e.conftest import Make
from e2e.support import Project, refuse, sample

ROWS = 2_000


@pytest.fixture(scope="module")
def good() -> pd.DataFrame:
    return sample(ROWS)


@pytest.fixture(scope="module")
def trained_once(make: Make, good: pd.DataFrame) -> Project:
    """A project whose version 1 was trained on good labels."""
    project = make(rows=None)
    project.use(good)
    project.run()
    return project.save()


def held_out(frame: pd.DataFrame) -> np.ndarray:
    """Which rows the project holds out: only the hash of the id decides."""
    from model.schema import Schema
    from ondol.config import Split
    from ondol.contract import describe
    from ondol.training.dataset import Holdout, in_holdout

    ids = pd.DataFrame({"customer_id": frame["customer_id"].astype("int64")})
    return in_holdout(ids, describe(Schema, "churned", "binary"), Holdout(split=Split()))


def shuffle(frame: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Shuffle the labels among some of the rows."""
    labels = frame["churned"].to_numpy(dtype=object, copy=True)
    labels[rows] = np.random.default_rng(0).permutation(labels[rows])
    return frame.assign(churned=labels)


def refused(project: Project) -> str:
    """Run, check that production is unchanged, and return the error."""
    before = project.champion
    done = project.ml("run")
    sentence = refuse(done, status=1)
    assert project.champion == before
    assert project.versions() == ["1", "2"]
    assert project.aliases() == {"champion": "1", "challenger": "2"}
    assert "champion version 1 stays in production" in sentence
    assert "it misses by" in sentence
    assert "refused" in done.stdout  # in the table of gates
    assert "Version 2 was refused" in project.ml("status").stdout
    return sentence


@pytest.mark.slow
def test_margin_refuses_a_model_of_labels_shuffled_in_the_training_rows(trained: Project, good: pd.DataFrame) -> None:
    held = held_out(good)
    assert 0.15 < held.mean() < 0.25
    trained.use(shuffle(good, ~held))
    assert "refused by" in (sentence := refused(trained))
    assert "the margin gate" in sentence


@pytest.mark.slow
def test_margin_alone_refuses_where_the_floor_would_not(trained: Project, good: pd.DataFrame) -> None:
    """Half the labels are shuffled: better than a dummy, worse than the champion."""
    held = held_out(good)
    some = ~held & (np.random.default_rng(1).random(len(good)) < 0.75)
    trained.use(shuffle(good, some))
    sentence = refused(trained)
    assert "the margin gate" in sentence
    assert "the floor gate" not in sentence


@pytest.mark.slow
def test_floor_refuses_a_model_of_labels_shuffled_everywhere(trained: Project, good: pd.DataFrame) -> None:
    trained.use(shuffle(good, np.ones(len(good), bool)))
    assert "the floor gate" in refused(trained)


def test_floor_refuses_the_very_first_model(make: Make, good: pd.DataFrame) -> None:
    project = make(rows=None)
    project.use(shuffle(good, np.ones(len(good), bool)))
    sentence = refuse(project.ml("run"), status=1)
    assert "the floor gate" in sentence
    assert "no model is in production yet" in sentence
    assert project.champion is None
    assert "champion" not in project.aliases()


def test_refused_candidate_is_not_deployed_by_hand(trained: Project, good: pd.DataFrame) -> None:
    trained.use(shuffle(good, np.ones(len(good), bool)))
    refused(trained)
    assert "the floor gate" in refuse(trained.ml("deploy", "2"), status=1)
    assert trained.champion and trained.champion["version"] == "1"


@pytest.mark.slow
def test_owner_s_minimum_refuses(trained: Project) -> None:
    trained.configure("gates", minimum=0.999)
    trained.configure("train", seed=1)
    sentence = refused(trained)
    assert "must be at least 0.9990" in sentence
