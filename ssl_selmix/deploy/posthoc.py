"""`ssl-selmix posthoc SCORES.npz|RUN`: a decision rule, a table of what it does, and a file of it.

Shapes: K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ssl_selmix import decision, metrics, objectives
from ssl_selmix.common.figures import fixed, limits, percent
from ssl_selmix.decision import DecisionRule
from ssl_selmix.deploy import scores
from ssl_selmix.deploy.scores import Scores
from ssl_selmix.runs.folder import check_free
from ssl_selmix.runs.summary import FIGURES

SHOWN = 30  # classes in the table
COLUMNS = ("before", "after", "cross_fitted", "test_before", "test_after")
TITLES = {"cross_fitted": "cross-fitted", "test_before": "test before", "test_after": "test after"}


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    source: Path  # a file of scores, or a run's folder
    objective: str = "h_mean"
    constraints: Sequence[str] = ()  # ./file.py:function
    rule: str = "offsets"
    prior: Sequence[float] | None = None  # class shares at deployment
    folds: int = 5
    calibrate: str = "temperature"
    seed: int = 0
    test: Path | None = None  # a file of scores that the rule is judged by
    out: Path | None = None
    force: bool = False
    settings: Sequence[str] = ()  # of the machine, for a run


@dataclass(frozen=True)
class Answer:
    """The rule, and the figures of every column by their names."""

    rule: DecisionRule
    seen: Scores
    columns: dict[str, Mapping[str, Any]]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        vector = self.rule.vector
        return {
            "source": self.seen.source,
            "class_names": list(self.seen.class_names),
            "kind": self.rule.kind,
            "offsets": None if vector is None else (vector + 0.0).tolist(),
            **self.columns,
            "optimism": dict(self.rule.optimism),
            "interval": list(self.rule.interval),
            "notes": list(self.rule.notes),
        }


def command(request: Request) -> Answer:
    """Fit a rule, judge it, and write it.

    Raises:
        ValueError: a mistake in the request or in a file, told in one line.
    """
    if request.out is not None:
        check_free(request.out, request.force)
    if request.source.is_dir():
        seen = scores.of_run(request.source, request.settings)
    elif request.settings:
        raise ValueError(f"{request.settings[0]} is for the folder of a run; leave it out")
    else:
        seen = scores.of_file(request.source)
    test = None if request.test is None else _test(request.test, seen)
    asked = objective_of(request.objective, seen)
    rule = decision.posthoc(
        seen.scores,
        seen.labels,
        objective=asked,
        constraints=[objectives.import_function(c) for c in request.constraints],
        rule=request.rule,
        folds=request.folds,
        calibrate=request.calibrate,
        prior=None if request.prior is None else list(request.prior),
        probabilities=seen.probabilities,
        seed=request.seed,
    )
    columns: dict[str, Mapping[str, Any]] = {
        "before": rule.before,
        "after": rule.after,
        "cross_fitted": rule.cross_fitted,
    }
    if test is not None:
        columns |= _judged(rule, test, asked)
    if request.out is not None:
        rule.save(request.out)
    return Answer(rule, seen, columns)


def objective_of(name: str, seen: Scores) -> Any:
    """What `posthoc` takes: a name, or an objective that knows the rare classes of a run."""
    if name not in objectives.DESCRIPTIONS:
        return objectives.import_function(name)
    if seen.task is not None and "tail" in objectives.option_names(name):
        return objectives.get(name, len(seen.class_names), tail=seen.task.tail)
    return name


def _test(path: Path, seen: Scores) -> Scores:
    test = scores.of_file(path)
    k, kind = len(seen.class_names), "probs" if seen.probabilities else "scores"
    if test.scores.shape[1] != k or test.probabilities != seen.probabilities:
        raise ValueError(
            f"{path} must hold {kind} of {k} classes, as {seen.source} does, got "
            f"{'probs' if test.probabilities else 'scores'} of {test.scores.shape[1]}; take both "
            "from one model"
        )
    if (low := int(test.labels.min())) < 0 or int(test.labels.max()) >= k:
        raise ValueError(
            f"{path}: labels must lie in 0..{k - 1}, got {low}..{int(test.labels.max())}; count "
            "classes from 0"
        )
    return test


def _judged(rule: DecisionRule, test: Scores, asked: Any) -> dict[str, Mapping[str, Any]]:
    """The figures of other images; the objective too, if each class is among them."""
    k = len(test.class_names)
    found: dict[str, Mapping[str, Any]] = {}
    whole = len(test.labels.unique()) == k
    for name, classes in (
        ("test_before", test.scores.argmax(1)),
        ("test_after", rule.predict(test.scores)),
    ):
        confusion = metrics.confusion_matrix(test.labels, classes, k)
        value = _value(asked, confusion) if whole else None
        found[name] = {"objective": value, **metrics.from_confusion(confusion)}
    return found


def _value(asked: Any, confusion: torch.Tensor) -> float:
    if isinstance(asked, str):
        asked = objectives.get(asked, len(confusion))
    if isinstance(asked, objectives.Objective):
        return asked.metric(confusion)
    return float(asked(confusion))


def show(answer: Answer, out: Console) -> None:
    """Print the figures, the classes, and the notes."""
    names = [name for name in COLUMNS if name in answer.columns]
    table = Table(title=escape(f"{answer.seen.source}, percent"), title_justify="left")
    table.add_column("figure")
    for name in names:
        table.add_column(TITLES.get(name, name), justify="right")
    slacks = [key for key in answer.rule.before if key.startswith("slack_")]
    rows = {"objective": "objective", **{s: s.replace("_", " ", 1) for s in slacks}, **FIGURES}
    for key, title in rows.items():
        table.add_row(escape(title), *(_percent(answer.columns[n].get(key)) for n in names))
    out.print(table)
    out.print(_classes(answer, names))
    told = limits(*answer.rule.interval, between=" to ")
    lines = [f"change on images left out, 95 % interval: {told} points"]
    for line in (*lines, *answer.rule.notes):
        out.print(line, highlight=False, markup=False)


def _classes(answer: Answer, names: Sequence[str]) -> Table:
    table = Table(title="recall of each class, percent", title_justify="left")
    vector = answer.rule.vector
    columns = ["class", "images", *([] if vector is None else ["offset"])]
    for title in (*columns, *(TITLES.get(name, name) for name in names)):
        table.add_column(title, justify="left" if title == "class" else "right")
    counts = np.bincount(answer.seen.labels.numpy(), minlength=len(answer.seen.class_names))
    for k, name in enumerate(answer.seen.class_names[:SHOWN]):
        own = [] if vector is None else [fixed(vector[k], 2, signed=True)]
        recalls = [_percent(answer.columns[n]["per_class_recall"][k]) for n in names]
        table.add_row(escape(name), str(counts[k]), *own, *recalls)
    if len(answer.seen.class_names) > SHOWN:
        table.caption = f"the first {SHOWN} of {len(answer.seen.class_names)}; --json has all"
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else percent(value)
