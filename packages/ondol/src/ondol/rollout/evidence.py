"""What is known of a rollout: sums over the log of its time, in one record in the store.

The record is replaced atomically, and has the sums together with the places up to which each file of the log was read.
So a judge that is killed at any moment continues where the record ends: no request counts twice, and none is missed.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from ondol.registry.rollout import Rollout
from ondol.rollout.sequences import Arms, Bounds, Floats, Moments, Share
from ondol.storage.files import read_record
from ondol.storage.store import Store
from ondol_serving.decision import DecisionRule, decide

CHAMPION, CHALLENGER = "champion", "challenger"
VALUE = "value"  # the output of a regression
FAR = 0.5  # two values differ if they are further apart than this share of the champion's standard deviation
MOST_POINTS = 200  # of the picture


@dataclass
class Stretch:
    """What was logged in one look and step, by version: requests, failures among them, latencies in milliseconds.

    `instead` is the number of failures of the challenger after which the champion answered.
    """

    requests: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    failed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    instead: int = 0
    ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ratios: list[float] = field(default_factory=list)  # of latencies for the same request, challenger to champion


@dataclass
class Answers:
    """The answers of both versions to N rows: of K probabilities or one value. NaN: it has not answered the row.

    Attributes:
        request: The number of each row's request, [N], from 0 without gaps.
        champion: Its answers, [N, K].
        challenger: Its answers, [N, K].
        refused: Whether only one of them accepts the row, [N].
        step: The step of each request.
        keys: The id of the request, position in it, and the id that was sent, of each row, to find its label.
        rules: How the champion and the challenger decide labels.
    """

    request: np.ndarray
    champion: Floats
    challenger: Floats
    refused: np.ndarray
    step: np.ndarray
    keys: list[tuple[str, int, str | None]] = field(default_factory=list)
    rules: tuple[DecisionRule | None, DecisionRule | None] = (None, None)


class Output(BaseModel):
    """One number of an answer: the probability of a class, or the value.

    Attributes:
        champion: The champion's figure where both have answered, as means of requests.
        difference: Challenger minus champion there.
        arms: The same number on different requests, where the requests of one version cannot be sent to the other.
    """

    champion: Moments = Moments()
    difference: Moments = Moments()
    arms: Arms = Arms()


class Loss(BaseModel):
    """The metric of the gates where labels have come.

    Attributes:
        metric: Its name.
        requests: The labelled requests.
        champion: The champion's figure.
        challenger: The challenger's.
        worse: By how much the challenger is worse.
        error: The standard error of that.
        relative: Whether the limit is a share of the champion's figure.
    """

    metric: str
    requests: int
    champion: float
    challenger: float
    worse: float
    error: float
    relative: bool


class Point(BaseModel):
    """The bounds of each check at one look."""

    at: datetime
    bounds: dict[str, Bounds]


class Evidence(BaseModel):
    """The sums over the log since a rollout began.

    Attributes:
        rollout: Its id.
        read: How many bytes of each file of the log are in the sums.
        unanswered: Requests on which the challenger failed, as the last look has read, without the record of the
            champion's answer.
        looks: The number of looks.
        fault: Why the challenger cannot be judged any more; empty if it can.
        requests: The challenger's requests by step.
        beside: The champion's requests by step.
        failures: The share of failed requests, by version.
        instead: The requests on which the challenger failed and that the champion answered instead.
        latency: The logarithm of the latency.
        ratios: The logarithm of the ratio of the latencies for the same request, with "shadow".
        outputs: The answers, by class, or `value`.
        spread: The standard deviation of the champion's values.
        disagreement: The share of requests that both answer differently: the mean over a request's rows.
        loss: The metric where labels have come.
        variance: That of one request in the difference of the metric, of each look.
        points: The picture's points.
        closed: Whether the end of the rollout was reported.
    """

    rollout: str
    read: dict[str, int] = {}
    unanswered: set[str] = set()
    looks: int = 0
    fault: str = ""
    requests: dict[int, int] = {}
    beside: dict[int, int] = {}
    failures: dict[str, Share] = {}
    instead: int = 0
    latency: Arms = Arms()
    ratios: Moments = Moments()
    outputs: dict[str, Output] = {}
    spread: float | None = None
    disagreement: Share = Share()
    loss: Loss | None = None
    variance: Moments = Moments()
    points: list[Point] = []
    closed: bool = False

    def add(self, stretches: dict[int, Stretch], answers: Answers | None, names: tuple[str, ...]) -> None:
        """Add what one look has read.

        Args:
            stretches: What was counted, by step.
            answers: The answers to a sample of the requests.
            names: What each of the K numbers of an answer is called: the class, or `value`.
        """
        self.looks += 1
        for step, stretch in sorted(stretches.items()):
            if step >= 0:  # the champion's failures before the rollout are not in the log
                self._count(step, stretch)
            self.latency.add(_logarithms(stretch.ms[CHAMPION]), _logarithms(stretch.ms[CHALLENGER]))
            self.ratios.add(_logarithms(stretch.ratios))
        if answers is not None and len(answers.request):
            self._compare(answers, names)

    def _count(self, step: int, stretch: Stretch) -> None:
        self.requests[step] = self.requests.get(step, 0) + stretch.requests.get(CHALLENGER, 0)
        self.beside[step] = self.beside.get(step, 0) + stretch.requests.get(CHAMPION, 0)
        self.instead += stretch.instead
        for version, count in stretch.requests.items():
            self.failures.setdefault(version, Share()).add(count, stretch.failed[version])

    def _compare(self, answers: Answers, names: tuple[str, ...]) -> None:
        """Add the answers of both versions to the same rows, or to different ones."""
        apart = answers.challenger - answers.champion
        known = np.asarray(np.isfinite(apart).all(axis=1))
        scale = self._scale(answers.champion) if names == (VALUE,) else 1.0
        if names == (VALUE,):
            differs = np.asarray(np.abs(apart[:, 0]) > FAR * scale)
        else:
            ours, theirs = answers.rules
            differs = np.asarray(decide(ours, answers.champion) != decide(theirs, answers.challenger))
        compared = known | answers.refused
        shares = _means(answers, np.where(answers.refused, 1.0, differs), compared)
        self.disagreement.add(int(np.isfinite(shares).sum()), float(np.nansum(shares)))
        for place, name in enumerate(names):
            if len(names) == 2 and place == 0:  # the other probability moves by as much
                continue
            output = self.outputs.setdefault(name, Output())
            if known.any():
                output.champion.add(Moments.of(_means(answers, answers.champion[:, place] / scale, known)))
                output.difference.add(Moments.of(_means(answers, apart[:, place] / scale, known)))
            else:
                self._add_arms(output, answers, place, scale)

    def _add_arms(self, output: Output, answers: Answers, place: int, scale: float) -> None:
        sides = [
            _means(answers, side[:, place] / scale, np.isfinite(side[:, place]))
            for side in (answers.champion, answers.challenger)
        ]
        for step in np.unique(answers.step):
            champion, challenger = (Moments.of(side[answers.step == step]) for side in sides)
            output.arms.add(champion, challenger)

    def _scale(self, values: Floats) -> float:
        """Return the standard deviation of the champion's values: that of its reference, else of its first answers."""
        if self.spread is None:
            self.spread = float(np.nanstd(values))
        return self.spread or 1.0

    def add_loss(self, loss: Loss | None) -> None:
        """Replace the metric by that of all labels by now.

        Its standard error is that of the mean variance of all looks: each bootstrap is a bit off, and the looks would
        find the one that is off the most.
        """
        if loss is not None:
            self.variance.add(Moments(n=1, mean=loss.error**2 * loss.requests))
            loss = loss.model_copy(update={"error": math.sqrt(self.variance.mean / loss.requests)})
        self.loss = loss

    def draw(self, point: Point) -> None:
        """Add a point to the picture; if there are many, every second of the earlier ones is removed."""
        if len(self.points) >= MOST_POINTS:
            self.points = self.points[::2]
        self.points.append(point)


def _logarithms(values: list[float]) -> Moments:
    """Return the moments of the logarithms; a clock may show no time at all."""
    return Moments.of(np.log(np.maximum(np.asarray(values, np.float64), 1e-3))) if values else Moments()


def _means(answers: Answers, values: np.ndarray, chosen: np.ndarray) -> Floats:
    """Return the mean of the chosen rows of each request; NaN for a request without one."""
    request, requests = answers.request[chosen], len(answers.step)
    counts = np.bincount(request, minlength=requests)
    sums = np.bincount(request, values[chosen].astype(np.float64), minlength=requests)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def evidence_path(store: Store, rollout: Rollout) -> Path:
    """Return the path of a rollout's record."""
    return store.folder / "rollouts" / f"{rollout.id}.json"


def read_evidence(store: Store, rollout: Rollout) -> Evidence | None:
    """Return the record of a rollout; None before its first look.

    Raises:
        Damaged: the file cannot be read.
    """
    return read_record(evidence_path(store, rollout), Evidence)


def write_evidence(store: Store, rollout: Rollout, evidence: Evidence) -> None:
    """Replace the record of a rollout."""
    store.write_bytes(evidence_path(store, rollout), f"{evidence.model_dump_json()}\n".encode())
