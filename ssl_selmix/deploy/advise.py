"""`ssl-selmix advise RUN`: what limits a finished run, and what to try next.

Every sentence has the figure that it rests on. All figures are those of the validation images and
of the run's logs; test images and the pool's true labels are never looked at.

Shapes: N validation images, K classes.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ssl_selmix import decision
from ssl_selmix.common.config import PLACES_OF_DATA
from ssl_selmix.common.figures import limits, percent
from ssl_selmix.decision import DecisionRule
from ssl_selmix.decision.choose import FEW_IMAGES
from ssl_selmix.decision.crossfit import change_interval
from ssl_selmix.decision.goal import Goal, build
from ssl_selmix.deploy import scores
from ssl_selmix.deploy.posthoc import objective_of
from ssl_selmix.deploy.scores import Scores
from ssl_selmix.metrics import confusion_matrix
from ssl_selmix.runs.folder import RunFolder, open_run

Array = NDArray[Any]

ALL_PAIRS_UP_TO = 20  # classes; of more, the pairs that are confused most are looked at
MOST_PAIRS = 200
CONFUSED, PARTED = 0.75, 0.9  # recall of both classes of a pair that no offsets exceed
OPTIMISTIC = 0.02  # of the objective, from which on the validation images are too few
SELDOM = 0.05  # share of pseudo-labels that count, below which a method learns from labels alone
ALMOST_ALL = 0.9  # of P on one labeled class
FEWEST = 5  # validation images, one for each fold
NOTHING = 1e-4  # of an objective: what is left of it where some class has recall 0
UNLEARNED = 1.5  # times chance: a mean recall below it shows no features to build on


@dataclass(frozen=True)
class Finding:
    """A sentence, the word that a program may look for, and the figures."""

    topic: str  # ssl, offsets, classes, images, signs, next
    verdict: str
    text: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Advice:
    """All that was found about a run."""

    run: str
    objective: str
    findings: tuple[Finding, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    def of(self, topic: str) -> Finding:
        """The first finding of a topic.

        Raises:
            KeyError: there is none.
        """
        for finding in self.findings:
            if finding.topic == topic:
                return finding
        raise KeyError(topic)


@dataclass(frozen=True)
class Pair:
    """Two classes, told apart by the difference of their scores.

    auc: how often an image of one has a larger difference than one of the other; bound: what the
    recall of the worse one cannot exceed, whatever the offsets.
    """

    classes: tuple[int, int]
    images: tuple[int, int]
    auc: float
    interval: tuple[float, float]  # of the AUC, 95 % (Hanley and McNeil, 1982)
    bound: float


@dataclass(frozen=True)
class _Case:
    """What is known when the sentences are written."""

    run: RunFolder
    seen: Scores
    name: str  # of the objective
    goal: Goal
    rule: DecisionRule
    pair: Pair

    @property
    def counts(self) -> Array:
        return np.bincount(self.seen.labels.numpy(), minlength=len(self.seen.class_names))

    @property
    def gain(self) -> float:
        return float(self.rule.cross_fitted["objective"] - self.rule.before["objective"])

    @property
    def last(self) -> str:
        return self.run.stages[-1].algorithm


def of_run(
    run: Path,
    against: Path | None = None,
    objective: str | None = None,
    settings: Sequence[str] = (),
) -> Advice:
    """Look at a finished run, and at one that learned from labels alone on the same split.

    Raises:
        ValueError: no finished run, other images, or runs that do not compare.
    """
    opened = _opened(run)
    name = objective or str((opened.stages[-1].settings or {}).get("objective") or "h_mean")
    if against is not None:
        _check_same(opened, _opened(against))
    seen = scores.of_run(run, settings)
    asked = objective_of(name, seen)
    if len(seen.labels) < FEWEST:
        raise ValueError(
            f"{run} has {len(seen.labels)} validation images, and advice needs {FEWEST} at least; "
            "hold out more with data.validation"
        )
    rule = decision.posthoc(seen.scores, seen.labels, objective=asked)
    values, labels = seen.scores.numpy(), seen.labels.numpy()
    counts = np.bincount(labels)
    goal = Goal(build(asked, len(counts), ()), counts / counts.sum(), 0.5 / float(counts.max()))
    pair = hardest_pair(values, labels, rule.predict(values))
    case = _Case(opened, seen, name, goal, rule, pair)
    found = [] if against is None else [_ssl(case, against, scores.of_run(against, settings))]
    found += [_offsets(case), _classes(case), _images(case), *_signs(case)]
    return Advice(str(run), name, (*found, *_next(case)))


def _opened(run: Path) -> RunFolder:
    """A run, or a folder of `finetune`, whose network need not be known."""
    found = RunFolder(run)
    return found if found.of_finetune else open_run(run)


def _check_same(run: RunFolder, other: RunFolder) -> None:
    if run.results.manifest_sha256 != other.results.manifest_sha256:
        raise ValueError(
            f"{other.path} has other images or another split than {run.path}, so that they do not "
            f"compare; train it with data.manifest={run.path / 'manifest.json'}"
        )


def _points(value: float) -> str:
    return percent(value)


def _change(value: float, interval: tuple[float, float]) -> str:
    told = limits(*interval, between=" to ")
    return f"{percent(value, signed=True)} points, 95 % interval {told}"


def _ssl(case: _Case, place: Path, other: Scores) -> Finding:
    """Whether the unlabeled images helped, as the scores are and with offsets on both."""
    labels = case.seen.labels.numpy()
    first, second = (s.scores.argmax(1).numpy() for s in (other, case.seen))
    k = len(case.counts)
    goal = Goal(build("mean_recall", k, ()), case.goal.mass, 1e-7)
    before, now = (
        goal.objective.metric(confusion_matrix(case.seen.labels, s.scores.argmax(1), k))
        for s in (other, case.seen)
    )
    interval = change_interval(goal, labels, first, second, 0)
    change = now - before
    control = decision.posthoc(
        other.scores, other.labels, objective=objective_of(case.name, case.seen)
    )
    figures: dict[str, Any] = {
        "mean_recall": now,
        "mean_recall_against": before,
        "change": change,
        "interval": list(interval),
        "objective_with_offsets": case.rule.cross_fitted["objective"],
        "objective_with_offsets_against": control.cross_fitted["objective"],
    }
    verdict = "better" if interval[0] > 0 else "worse" if interval[1] < 0 else "not shown"
    words = {"better": "is better than", "worse": "is worse than"}.get(
        verdict, "is not shown to differ from"
    )
    text = (
        f"The run {words} labels only ({place}): mean recall {_points(now)} against "
        f"{_points(before)} ({_change(change, interval)}); with offsets on both, "
        f"{case.name} on images left out is {_points(figures['objective_with_offsets'])} against "
        f"{_points(figures['objective_with_offsets_against'])}."
    )
    return Finding("ssl", verdict, text, figures)


def _offsets(case: _Case) -> Finding:
    """Whether moving the decision boundary mends the objective."""
    rule, (low, high) = case.rule, case.rule.interval
    before, after = (float(f["objective"]) for f in (rule.before, rule.cross_fitted))
    verdict = "gain" if low > 0 else "loss" if high < 0 else "not shown"
    words = {
        "gain": "Offsets mend a part of it",
        "loss": "Offsets make it worse",
        "not shown": "Offsets are not shown to help",
    }[verdict]
    text = (
        f"{words}: {case.name} goes from {_points(before)} to {_points(after)} on images left out "
        f"({_change(case.gain, (low, high))}), mean recall from "
        f"{_points(rule.before['mean_recall'])} to {_points(rule.cross_fitted['mean_recall'])}, "
        f"the worst class from {_points(rule.before['min_recall'])} to "
        f"{_points(rule.cross_fitted['min_recall'])}."
    )
    assert rule.vector is not None
    figures = {
        "before": before,
        "cross_fitted": after,
        "interval": [low, high],
        "offsets": (rule.vector + 0.0).tolist(),
    }
    return Finding("offsets", verdict, text, figures)


def _classes(case: _Case) -> Finding:
    """Whether some two classes are confused in a way that no offsets can mend."""
    pair, names = case.pair, case.seen.class_names
    one, other = (names[k] for k in pair.classes)
    verdict = (
        "confused" if pair.bound < CONFUSED else "parted" if pair.bound >= PARTED else "between"
    )
    told = limits(*pair.interval, between=" to ", signed=False)
    words = {
        "confused": "Offsets cannot part them: that takes other features, or more labels of both",
        "between": "Offsets part them in part",
        "parted": "So the scores part all pairs, and what is wrong is where the boundaries lie",
    }[verdict]
    text = (
        f"{one} and {other} are the two classes that are hardest to part: their scores order "
        f"{_points(pair.auc)} % of pairs of images rightly (AUC; 95 % interval {told}, "
        f"{pair.images[0]} and {pair.images[1]} images), and whatever the offsets,"
        f" one of the two recalls is at most {_points(pair.bound)}. {words}."
    )
    return Finding("classes", verdict, text, {**asdict(pair), "names": [one, other]})


def hardest_pair(values: Array, labels: Array, predicted: Array) -> Pair:
    """The pair of classes with the lowest bound on the recall of the worse one.

    Of many classes only the pairs that `predicted` confuses most are looked at.

    Shape: values (N, K) scores; labels and predicted (N,).
    """
    k = values.shape[1]
    rows, columns = np.triu_indices(k, 1)
    if k > ALL_PAIRS_UP_TO:
        table = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)
        table = table / table.sum(1, keepdims=True)
        order = np.argsort(-(table + table.T)[rows, columns], kind="stable")[:MOST_PAIRS]
        rows, columns = rows[order], columns[order]
    of_class = [values[labels == c] for c in range(k)]
    found = [_pair(of_class, int(i), int(j)) for i, j in zip(rows, columns, strict=True)]
    return min(found, key=lambda pair: (pair.bound, pair.auc))


def _pair(of_class: Sequence[Array], i: int, j: int) -> Pair:
    mine, others = (np.sort(of_class[c][:, i] - of_class[c][:, j]) for c in (i, j))
    n, m = len(mine), len(others)
    below = np.searchsorted(others, mine, "left"), np.searchsorted(others, mine, "right")
    auc = float(sum(part.sum() for part in below)) / (2 * n * m)
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    spread = auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (m - 1) * (q2 - auc**2)
    width = 1.96 * math.sqrt(max(0.0, spread) / (n * m))
    # An image is taken for i where its difference is at least t, and t is any of those that occur.
    t = np.concatenate([mine, others])
    right_i = 1 - np.searchsorted(mine, t, "left") / n
    right_j = np.searchsorted(others, t, "left") / m
    bound = float(np.minimum(right_i, right_j).max())
    return Pair((i, j), (n, m), auc, (max(0.0, auc - width), min(1.0, auc + width)), bound)


def _images(case: _Case) -> Finding:
    """Whether the validation images are enough for the objective."""
    least = int(case.counts.min())
    optimism = float(case.rule.optimism["objective"])
    few = least < FEW_IMAGES or optimism > OPTIMISTIC
    rare = case.seen.class_names[int(case.counts.argmin())]
    text = (
        f"{case.seen.labels.numel()} validation images, the fewest {least} of {rare}, of which one "
        f"is {_points(1 / least)} points of its recall; what is chosen on them promises "
        f"{_points(optimism)} points of {case.name} more than images left out show."
    )
    if few:
        steadier = "mean_recall" if case.name.startswith(("h_", "g_")) else "h_mean"
        # Nothing hangs less on single images than a mean of all classes.
        other = f", or choose by {steadier}, which hangs less on single images,"
        text += (
            f" That is few for {case.name}: hold out at least {FEW_IMAGES} a class"
            f"{'' if case.name.startswith('mean_recall') else other} and believe intervals only."
        )
    figures = {"images": int(case.counts.sum()), "least": least, "optimism": optimism}
    return Finding("images", "few" if few else "enough", text, figures)


def _signs(case: _Case) -> Iterator[Finding]:
    """Signs of a collapse: in the predictions, and in the logs of the stages."""
    coverage = np.array(case.rule.before["per_class_coverage"])
    never = [case.seen.class_names[k] for k in np.flatnonzero(coverage == 0)]
    if never:
        left = int((np.array(case.rule.cross_fitted["per_class_coverage"]) == 0).sum())
        most = int(coverage.argmax())
        named = ", ".join(never[:10]) + (", ..." if len(never) > 10 else "")
        text = (
            f"{len(never)} of {len(coverage)} classes are never predicted ({named}), while "
            f"{case.seen.class_names[most]} gets {_points(coverage[most])} % of all predictions; "
            f"with offsets {left} are."
        )
        figures = {"classes": never, "with_offsets": left, "largest": float(coverage[most])}
        yield Finding("signs", "never predicted", text, figures)
    for index, stage in enumerate(case.run.stages):
        place = case.run.place(index).name
        # For the worst class alone P has to be on one class.
        worst = str((stage.settings or {}).get("objective")).startswith("min_")
        log = "metrics.jsonl" if case.run.of_finetune else f"{place}/metrics.jsonl"
        yield from _of_log(place, _rows(case.run, log), spread=not worst)
        if stage.steps and stage.kept_step == 0:
            text = (
                f"{place} kept the weights that it began with: none of its {stage.steps} steps was "
                "better on the validation images, by the figure that it selects by."
            )
            yield Finding("signs", "start kept", text, {"stage": place, "steps": stage.steps})


def _of_log(place: str, rows: Sequence[dict[str, Any]], *, spread: bool) -> Iterator[Finding]:
    """Signs in the log of a stage; with `spread`, P is expected to be on several classes."""
    masks = [row["mask_rate"] for row in rows if isinstance(row.get("mask_rate"), float)]
    if masks and masks[-1] < SELDOM:
        text = (
            f"{place} learned from few unlabeled images: at its end {_points(masks[-1])} % of the "
            "pseudo-labels counted; lower the threshold, or train longer."
        )
        yield Finding("signs", "few pseudo-labels", text, {"stage": place, "mask_rate": masks[-1]})
    pairs = [row["pair_distribution"] for row in rows if row.get("pair_distribution")]
    if pairs and spread:
        shares = np.array(pairs[-1], float).sum(1)
        if shares.max() > ALMOST_ALL:
            text = (
                f"{place} drew {_points(shares.max())} % of its pairs for class "
                f"{int(shares.argmax())} at its last estimate; raise spread, or take an objective "
                "that sees all classes."
            )
            figures = {"stage": place, "class": int(shares.argmax()), "share": float(shares.max())}
            yield Finding("signs", "one class in P", text, figures)
    back = [row["taken_back"] for row in rows[1:] if isinstance(row.get("taken_back"), float)]
    if len(back) > 1 and sum(back) > len(back) / 2:
        text = (
            f"{place} took {sum(back):.0f} of {len(back)} intervals back, for the objective fell: "
            "there was little to gain, or the validation images are too few to see it."
        )
        yield Finding("signs", "steps taken back", text, {"stage": place, "share": sum(back)})


def _rows(run: RunFolder, name: str) -> list[dict[str, Any]]:
    """What can be read of a log; nothing if there is none."""
    if not run.has(name):
        return []
    rows = []
    for line in run.lines(name):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # half a row, written when the run was killed
        rows += [row] if isinstance(row, dict) else []
    return rows


def _next(case: _Case) -> Iterator[Finding]:
    """What to do, by what was found."""
    rule, name = case.rule, case.name
    mean, chance = float(rule.cross_fitted["mean_recall"]), 1 / len(case.counts)
    low, high = rule.interval
    gain = _change(case.gain, (low, high))
    if mean < UNLEARNED * chance:
        text = (
            f"Train the first stage longer: even with offsets mean recall is {_points(mean)}, and "
            f"chance is {_points(chance)}, so that no later stage has features to build on."
        )
        yield Finding("next", "train longer", text, {"mean_recall": mean, "chance": chance})
        return
    if case.last in ("selmix", "posthoc"):
        text = (
            f"{case.last} was tuned on these validation images, so that all figures here are too "
            "good; judge it by images that nothing was chosen on."
        )
        yield Finding("next", "tuned already", text, {"stage": case.last})
    if lost := _without_a_hit(case):
        text = (
            f"Judge by another figure: {name} is {_points(rule.before['objective'])} and with "
            f"offsets {_points(rule.cross_fitted['objective'])}, for {lost} of "
            f"{len(case.counts)} classes have no validation image right, and then nothing is seen "
            f"of all others: ssl-selmix advise {case.run.path} --objective mean_recall."
        )
        yield Finding("next", "other objective", text, {"classes": lost})
    elif low > 0:
        text = (
            f"Move the boundaries first ({gain}, in a second): {_command(case, 'posthoc')}; then "
            "see whether SelMix, started from the run or from that, is better on images that "
            "neither saw."
        )
        yield Finding("next", "posthoc", text, {"gain": case.gain, "interval": [low, high]})
    elif case.pair.bound < PARTED and case.last != "selmix":
        text = (
            f"Change the features, for offsets gain nothing that is shown ({gain}) and the hardest "
            f"pair is bounded by {_points(case.pair.bound)}: {_command(case, 'selmix')}."
        )
        yield Finding("next", "selmix", text, {"gain": case.gain, "bound": case.pair.bound})
    else:
        both = " and ".join(case.seen.class_names[k] for k in case.pair.classes)
        text = (
            f"Nothing that moves boundaries is shown to help {name} ({gain}); label more images of "
            f"{both}, the pair bounded by {_points(case.pair.bound)}, or take a better network."
        )
        yield Finding("next", "labels", text, {"gain": case.gain, "bound": case.pair.bound})


def _without_a_hit(case: _Case) -> int:
    """How many classes have recall 0, if that alone decides the objective; 0: it does not.

    A geometric or harmonic mean and a worst class are 0 then, whatever the other classes do.
    """
    rule = case.rule
    stuck = max(abs(float(f["objective"])) for f in (rule.before, rule.cross_fitted)) < NOTHING
    if not stuck:
        return 0
    return min(
        int((np.array(f["per_class_recall"]) == 0).sum()) for f in (rule.before, rule.cross_fitted)
    )


def _command(case: _Case, algorithm: str) -> str:
    """How a stage is started from the run: as the run was asked for, without its algorithms."""
    if case.run.of_finetune:
        how = "posthoc=True" if algorithm == "posthoc" else f"objective={case.name!r}"
        return f"finetune(..., {how})"
    words = shlex.split(str(case.run.manifest.get("command", "")))[2:]
    own = {stage.algorithm for stage in case.run.stages}
    kept: list[str] = []
    while words:
        word = words.pop(0)
        if word in ("--algo", "--then"):
            words = words[1:]
        elif word.partition(".")[0] not in own:
            kept.append(word)
    # A run records its command without the places of this machine.
    data = case.run.config.get("data", {})
    found = {key: data.get(key.removeprefix("data.")) for key in PLACES_OF_DATA}
    places = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in found.items()
        if value
    ]
    kept += [place for place in places if place not in kept]
    start = ["ssl-selmix", "train", "--algo", algorithm, "--init", str(case.run.path)]
    return shlex.join([*start, *kept, f"{algorithm}.objective={case.name}"])


def show(advice: Advice, out: Console) -> None:
    """Print the sentences, each after its topic."""
    out.print(f"{advice.run}, judged by {advice.objective}", highlight=False, markup=False)
    for finding in advice.findings:
        out.print(f"{finding.topic:8} {finding.text}", highlight=False, markup=False)
