"""Objectives by name, with their options."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_selmix import metrics
from ssl_selmix.common import plugins
from ssl_selmix.common.rules import Checked, check_field, positive, within
from ssl_selmix.objectives.confusion import RECALL_FLOOR, Function, _tried, name_of
from ssl_selmix.objectives.kinds import (
    Constrained,
    FunctionObjective,
    Groups,
    Objective,
    RecallMean,
    WorstRecall,
    _coverage_terms,
    _stacked_terms,
)

# Read through `ast` by the help command, which must not import torch: keep it a plain literal.
DESCRIPTIONS: dict[str, str] = {
    "mean_recall": "mean of the class recalls (balanced accuracy)",
    "min_recall": "recall of the worst class",
    "min_ht_recall": "the smaller of the mean recalls of the head and of the tail classes",
    "g_mean": "geometric mean of the class recalls",
    "h_mean": "harmonic mean of the class recalls",
    "mean_recall_min_coverage": "mean recall, every class predicted at least alpha/K of the time",
    "h_mean_min_coverage": "harmonic mean, every class predicted at least alpha/K of the time",
    "mean_recall_min_ht_coverage": "mean recall, head and tail predicted alpha/K on class average",
    "h_mean_min_ht_coverage": "harmonic mean, head and tail predicted alpha/K on class average",
}
_MEANS: dict[str, tuple[Function, float]] = {
    "mean_recall": (torch.mean, 0.0),
    "g_mean": (metrics.geometric_mean, RECALL_FLOOR),
    "h_mean": (metrics.harmonic_mean, RECALL_FLOOR),
}

# Of options that are None; their rules stand at the fields of `Config`.
_DEFAULTS = {"step_size": 50.0, "beta": 0.0, "alpha": 0.95, "tau": 0.01, "lambda_max": 100.0}


def option_names(name: str) -> tuple[str, ...]:
    """Options that the shipped objective of this name has, beside `constraints`.

    Examples:
        >>> option_names("min_ht_recall")
        ('step_size', 'beta', 'tail')
    """
    own: tuple[str, ...] = ("step_size", "beta") if name.startswith("min_") else ()
    own += ("alpha", "tau", "lambda_max") if name.endswith("coverage") else ()
    return own + (("tail",) if "_ht_" in name else ())


def get(objective: str | Function, num_classes: int, **options: Any) -> Objective:
    """The objective of this name, or one made of any function of the confusion matrix.

    `objective` is a name from `DESCRIPTIONS`, a callable f(confusion) -> scalar tensor, or a string
    that says where to import one: "my_module:function" or "./file.py:function".

    Options: `step_size` and `beta` for min_recall and min_ht_recall; `alpha`, `tau`, `lambda_max`
    for the coverage ones; `tail` (class indices) where head and tail are told apart. Every
    objective takes `constraints`, a list of functions g(confusion) or pairs (name, g), each of
    which is to be >= 0, and with them `tau` and `lambda_max`.

    Unless `tail` says otherwise, the tail is the last max(1, round(K/10)) classes (long-tailed
    benchmarks order classes by frequency) and the head is all others, for means and multipliers
    alike. The released code takes its means over `[:int(0.9 K)]` but hands multipliers out by `i <
    0.9K`, with shares 0.9K and 0.1K: where 10 does not divide K the two disagree, and at K = 3 the
    tail class receives the head's multiplier. At K = 10, 20, ... both codes agree, but for one
    thing: here the normaliser is 1 + the largest *class* multiplier for all coverage objectives,
    which bounds the derivative by 1; the released mean_recall_min_ht_coverage takes the group
    multipliers, a constant factor.

    Examples:
        >>> import torch
        >>> confusion = torch.tensor([[45, 5], [30, 20]])  # recalls 0.9 and 0.4
        >>> objective = get("min_recall", 2, step_size=2.0)
        >>> objective.metric(confusion)
        0.4
        >>> objective.update(confusion)
        >>> objective.multipliers  # exp(-1.8) : exp(-0.8)
        tensor([0.2689, 0.7311], dtype=torch.float64)
        >>> round(objective.value(confusion).item(), 4)  # 0.2689 * 0.9 + 0.7311 * 0.4
        0.5345
        >>> get(lambda c: c.trace() / c.sum(), 2).metric(confusion)
        0.65
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(
            f"num_classes must be an integer >= 2, got {num_classes!r}; pass the number of "
            "classes K"
        )
    if isinstance(objective, str) and objective not in DESCRIPTIONS:
        objective = import_function(objective)
    constraints = list(options.pop("constraints", None) or ())
    known = option_names(objective) if isinstance(objective, str) else ()
    values = _checked_options(objective, known, options, bool(constraints))
    built = _build(objective, num_classes, values)
    return (
        _constrain(built, constraints, values["tau"], values["lambda_max"])
        if constraints
        else built
    )


def _build(objective: str | Function, num_classes: int, options: Mapping[str, Any]) -> Objective:
    if isinstance(objective, Objective):
        if objective.num_classes != num_classes:
            raise ValueError(
                f"the objective must be for num_classes={num_classes}, got one for "
                f"{objective.num_classes}; build it again with get(name, num_classes)"
            )
        return objective
    if not isinstance(objective, str):
        return FunctionObjective(num_classes, _tried(objective, num_classes))
    index, coverage_labels = list(range(num_classes)), ["min_coverage"]
    if "_ht_" in objective:
        tail = metrics.tail_classes(num_classes, options["tail"])
        index, coverage_labels = (
            [int(i in tail) for i in range(num_classes)],
            ["head_coverage", "tail_coverage"],
        )
    groups = Groups(index)
    if objective.startswith("min_"):
        return WorstRecall(num_classes, groups, options["step_size"], options["beta"])
    mean, _, coverage = objective.partition("_min_")
    base = RecallMean(num_classes, *_MEANS[mean])
    if not coverage:
        return base
    terms = functools.partial(_coverage_terms, alpha=options["alpha"])
    tau, lambda_max = options["tau"], options["lambda_max"]
    return Constrained(
        base, terms, groups, coverage_labels, tau=tau, lambda_max=lambda_max, by_class=True
    )


def _constrain(
    base: Objective,
    constraints: Sequence[Function | tuple[str, Function]],
    tau: float,
    lambda_max: float,
) -> Objective:
    named = [
        c if isinstance(c, tuple) else (name_of(c, f"constraint_{i}"), c)
        for i, c in enumerate(constraints)
    ]
    labels = [name for name, _ in named]
    # Two bounds of one kind need two keys in a report.
    labels = [f"{name}_{i}" if labels.count(name) > 1 else name for i, name in enumerate(labels)]
    for label, function in named:
        if not callable(function):
            raise ValueError(
                f"constraint {label} must be callable, got {function!r}; pass g(confusion) -> "
                "scalar"
            )
        _tried(function, base.num_classes)
    terms = functools.partial(_stacked_terms, functions=[function for _, function in named])
    groups = Groups(range(len(named)))
    return Constrained(base, terms, groups, labels, tau=tau, lambda_max=lambda_max, by_class=False)


def _checked_options(
    objective: str | Function, known: tuple[str, ...], options: Mapping[str, Any], constrained: bool
) -> dict[str, Any]:
    allowed = known + tuple(o for o in ("tau", "lambda_max") if constrained and o not in known)
    for option in options:
        if option not in allowed:
            title = objective if isinstance(objective, str) else name_of(objective, "this function")
            has = ", ".join((*allowed, "constraints"))
            raise ValueError(
                f"objective {title} has no option {option!r}; its options are: {has}"
                + ("" if constrained else " (which bring tau and lambda_max)")
            )
    values: dict[str, Any] = {"tail": options.get("tail")}
    for option, default in _DEFAULTS.items():
        value = options.get(option, default)
        try:
            check_field(Config, option, value)
            values[option] = float(value)
        except (ValueError, TypeError) as error:  # None is no number here
            reason = error if value is not None else f"{option} must be a number, not None"
            raise ValueError(f"{reason}; the default is {default:g}") from error
    return values


def import_function(where: str) -> Function:
    """A function of the confusion matrix from "my_module:function" or "./file.py:function".

    Raises:
        ValueError: it cannot be imported, or is no function.
    """
    if not isinstance(where, str):
        raise ValueError(f"a function is named by a text such as './file.py:function', not {where}")
    module_name, separator, attribute = where.rpartition(":")
    if not separator:
        near = difflib.get_close_matches(where, DESCRIPTIONS, n=3, cutoff=0.4) or list(DESCRIPTIONS)
        raise ValueError(
            f"unknown objective {where!r}; nearest: {', '.join(near)}. For your own function pass "
            "it, or 'my_module:function' or './file.py:function'"
        )
    try:
        module = (
            plugins.import_file(Path(module_name))
            if module_name.endswith(".py")
            else importlib.import_module(module_name)
        )
        function = getattr(module, attribute)
    except Exception as error:  # whatever a user's file raises is the reason
        raise ValueError(
            f"cannot import objective {where!r}: {type(error).__name__}: {error}; write "
            "'my_module:function' with the module on PYTHONPATH, or './file.py:function' relative "
            "to the working directory"
        ) from error
    if not callable(function):
        raise ValueError(
            f"objective {where!r} must be a function, got {type(function).__name__}; name a "
            "callable"
        )
    checked: Function = function
    return checked


@dataclass
class Config(Checked):
    """Which objective an algorithm trains for; an option that is None is the objective's own."""

    # what is raised: a name of `ssl-selmix list`, or ./file.py:function of the confusion matrix
    objective: str = "min_recall"
    constraints: list[str] = field(default_factory=list)  # ./file.py:function, to be >= 0
    # step size of the recall multipliers (val_lr); None: 50
    step_size: float | None = positive(None)
    beta: float | None = within("[0, 1]", None)  # memory of the recall multipliers; None: 0
    # Least coverage, as a share of 1/K; coverages sum to 1, so that above 1 none satisfies all.
    # None: 0.95
    alpha: float | None = within("(0, 1]", None)
    tau: float | None = positive(None)  # softness of the coverage constraint; None: 0.01
    lambda_max: float | None = positive(None)  # largest coverage multiplier; None: 100

    def build_objective(self, num_classes: int, tail: Sequence[int]) -> Objective:
        """The configured objective for K classes, of which these are the rare ones."""
        names = ("step_size", "beta", "alpha", "tau", "lambda_max")
        options: dict[str, Any] = {n: v for n in names if (v := getattr(self, n)) is not None}
        if self.constraints:
            options["constraints"] = [import_function(c) for c in self.constraints]
        known = self.objective in DESCRIPTIONS
        if known and "tail" in option_names(self.objective):
            options["tail"] = list(tail)
        return get(self.objective, num_classes, **options)


def report(objective: Objective, confusion: Tensor, *, ranked: bool) -> dict[str, Tensor]:
    """What an algorithm logs of its objective: the figure and the slack of every constraint.

    With `ranked`, also `feasibility`, which comes before the figure when weights are compared.

    Shape: confusion (K, K), scalars.
    """
    logs = {"objective": torch.tensor(objective.metric(confusion))}
    for name, slack in objective.constraints(confusion).items():
        logs[f"slack_{name}"] = torch.tensor(slack)
    if ranked:
        feasibility = objective.feasibility(confusion)
        logs["feasibility"] = torch.tensor(feasibility, dtype=torch.float64)
    return logs
