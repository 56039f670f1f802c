"""Objectives: functions of the confusion matrix that SelMix makes larger.

An objective is ψ(C), where C is the joint K×K confusion matrix of a validation set, rows = true
class. Worst-case and constrained objectives are Lagrangians: `value` holds their multipliers
constant, `update` sets them from a measured C. The shipped objectives do not depend on how many
validation images each class has: recalls divide by the row, coverages are those of the matrix whose
rows all have mass 1/K. Raw counts are therefore accepted as well.

Shape legend: K classes, G groups of classes, J constraint terms.
"""

import difflib
import functools
import importlib
import itertools
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_selmix import plugins
from ssl_selmix.algorithm import Task
from ssl_selmix.metrics import tail_size

Function = Callable[[Tensor], Tensor]

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

# Below this a recall counts as this in geometric and harmonic means, whose derivative at 0 is
# infinite or undefined.
RECALL_FLOOR = 1e-7


def check_confusion(confusion: Tensor, num_classes: int | None = None) -> Tensor:
    """The confusion matrix as a floating tensor, or a ValueError that says what is wrong."""
    if not isinstance(confusion, Tensor) or confusion.ndim != 2 or len(set(confusion.shape)) != 1:
        shape = tuple(getattr(confusion, "shape", ())) or type(confusion).__name__
        raise ValueError(
            f"a confusion matrix must be a square tensor, got {shape}; pass (K, K), rows = "
            "true class"
        )
    if len(confusion) < 2:
        raise ValueError(
            f"a confusion matrix needs at least 2 classes, got {len(confusion)}; pass (K, K) "
            "with K >= 2"
        )
    if num_classes is not None and len(confusion) != num_classes:
        raise ValueError(
            f"the confusion matrix must have the objective's {num_classes} classes, got "
            f"{len(confusion)}; "
            f"build the objective with num_classes={len(confusion)}"
        )
    confusion = confusion if confusion.is_floating_point() else confusion.double()
    entries = confusion.detach()
    if not bool(entries.isfinite().all()):
        raise ValueError(
            "confusion entries must be finite, got inf or nan; check the predictions it was "
            "counted from"
        )
    if bool((entries < 0).any()):
        raise ValueError(
            f"confusion entries must be >= 0, got {float(entries.min()):g}; pass counts or "
            "frequencies"
        )
    empty = (entries.sum(1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"every class needs a validation image, classes {empty} have none (zero rows); "
            "add images of them to the validation set or drop the classes"
        )
    return confusion


def _balance(confusion: Tensor, smoothing: float = 0.0) -> Tensor:
    num_classes = len(confusion)
    conditional = confusion / confusion.sum(1, keepdim=True)
    return ((1 - smoothing) * conditional + smoothing / num_classes) / num_classes


def normalise_rows(confusion: Tensor, smoothing: float = 0.0) -> Tensor:
    """Give every class the same mass 1/K, after mixing its row with the uniform one.

    Row i becomes `((1 - smoothing) C_ij / r_i + smoothing / K) / K`. Without smoothing this only
    removes the class sizes of the validation set. Smoothing reads each row as counts plus a uniform
    prior (K / (n_i + K) is one count more in every cell; 0.01 is a mild choice): a class with
    recall 0 gets recall smoothing/K. That is what keeps its gradient alive, for the derivative with
    respect to its logits is proportional to the recall itself.

    Shape: (K, K) -> (K, K).

    Examples:
        >>> import torch
        >>> normalise_rows(torch.tensor([[3.0, 1.0], [0.0, 2.0]])).tolist()
        [[0.375, 0.125], [0.0, 0.5]]
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be in [0, 1], got {smoothing}; 0 is none, 0.01 a little")
    return _balance(check_confusion(confusion), smoothing)


def _recalls(confusion: Tensor) -> Tensor:
    return confusion.diagonal() / confusion.sum(1)


class Groups(nn.Module):
    """A partition of n items: means of groups, and multipliers spread over their members."""

    index: Tensor
    size: Tensor

    def __init__(self, index: Sequence[int]) -> None:
        super().__init__()
        # Both follow from the options, so a checkpoint need not carry them.
        self.register_buffer("index", torch.tensor(index), persistent=False)
        self.register_buffer("size", torch.bincount(self.index), persistent=False)

    def sum(self, items: Tensor) -> Tensor:
        """Shape: (n,) -> (G,)."""
        # A product, since index_add is not repeatable on a GPU.
        member = (
            self.index.to(items.device)
            == torch.arange(len(self.size), device=items.device)[:, None]
        )
        return member.to(items) @ items

    def mean(self, items: Tensor) -> Tensor:
        """Shape: (n,) -> (G,)."""
        return self.sum(items) / self.size.to(items)

    def spread(self, groups: Tensor) -> Tensor:
        """Shape: (G,) -> (n,), such that `sum` of the result is the argument again."""
        return (groups / self.size.to(groups))[self.index.to(groups.device)]


class Objective(nn.Module):
    """ψ(C) with its multipliers; larger is better. Subclasses override underscored methods."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def value(self, confusion: Tensor) -> Tensor:
        """ψ(C), differentiable, multipliers held constant. Shape: (K, K) -> ()."""
        return self._value(check_confusion(confusion, self.num_classes))

    def forward(self, confusion: Tensor) -> Tensor:
        """The same as `value`: an objective is itself a function of the confusion matrix."""
        return self.value(confusion)

    def update(self, confusion: Tensor) -> None:
        """Set the multipliers, in place, from a measured confusion matrix."""
        confusion = check_confusion(confusion, self.num_classes)
        with torch.no_grad():
            self._update(confusion.double())

    def merit(self, confusion: Tensor) -> Tensor:
        """What `update` and steps on `value` raise together: a potential without multipliers.

        `value` tells nothing between two measurements whose multipliers differ. Where no
        multiplier has a memory, the gradient of this is that of `value` at updated ones.

        Shape: (K, K) -> ().
        """
        return self._merit(check_confusion(confusion, self.num_classes))

    def metric(self, confusion: Tensor) -> float:
        """The figure to report: the unrelaxed, unconstrained metric."""
        confusion = check_confusion(confusion, self.num_classes)
        with torch.no_grad():
            return float(self._metric(confusion.double()))

    def constraints(self, confusion: Tensor) -> dict[str, float]:
        """Slack of every constraint at this confusion matrix; >= 0 means that it holds."""
        confusion = check_confusion(confusion, self.num_classes)
        with torch.no_grad():
            return self._slacks(confusion.double())

    def feasibility(self, confusion: Tensor) -> float:
        """The smallest slack if a constraint is violated, else 0."""
        return min([0.0, *self.constraints(confusion).values()])

    @property
    def multipliers(self) -> Tensor | None:
        """The (K,) multipliers of the classes, or None if there are none."""
        return None

    def _value(self, confusion: Tensor) -> Tensor:
        raise NotImplementedError

    def _merit(self, confusion: Tensor) -> Tensor:
        return self._value(confusion)

    def _update(self, confusion: Tensor) -> None:
        pass

    def _metric(self, confusion: Tensor) -> Tensor:
        return self._value(confusion)

    def _slacks(self, confusion: Tensor) -> dict[str, float]:
        return {}


class FunctionObjective(Objective):
    """A user's function of the confusion matrix, as it is: it sees the matrix that it is given."""

    def __init__(self, num_classes: int, function: Function) -> None:
        super().__init__(num_classes)
        self.function = function  # a Module is registered by this, so its buffers move along

    def _value(self, confusion: Tensor) -> Tensor:
        return _result(self.function, confusion)


class RecallMean(Objective):
    """A mean of the class recalls: arithmetic, geometric or harmonic."""

    def __init__(self, num_classes: int, mean: Function, floor: float) -> None:
        super().__init__(num_classes)
        self.mean, self.floor = mean, floor

    def _value(self, confusion: Tensor) -> Tensor:
        recall = _recalls(confusion)
        # The floor acts on the value and lets the gradient pass, so that a class at recall 0 can
        # still be improved.
        return self.mean(recall + (recall.clamp_min(self.floor) - recall).detach())

    def _metric(self, confusion: Tensor) -> Tensor:
        return self.mean(_recalls(confusion))


class WorstRecall(Objective):
    """The smallest group recall, relaxed to `sum_i lam_i recall_i`.

    `update` sets the group multipliers to `lam_g^beta exp(-step_size recall_g)`, normalised; each
    is shared by the classes of its group. With beta = 0 they have no memory.
    """

    lam: Tensor

    def __init__(self, num_classes: int, groups: Groups, step_size: float, beta: float) -> None:
        super().__init__(num_classes)
        self.groups, self.step_size, self.beta = groups, step_size, beta
        start = torch.ones(len(groups.size), dtype=torch.float64) / len(groups.size)
        self.register_buffer("lam", groups.spread(start))

    @property
    def multipliers(self) -> Tensor | None:
        """The (K,) multipliers; they sum to 1."""
        return self.lam

    def _value(self, confusion: Tensor) -> Tensor:
        return (self.lam.to(confusion) * _recalls(confusion)).sum()

    def _merit(self, confusion: Tensor) -> Tensor:
        """The soft minimum, whose derivatives by the recalls are the multipliers."""
        scores = -self.step_size * self.groups.mean(_recalls(confusion))
        return -(scores.logsumexp(0) - math.log(len(scores))) / self.step_size

    def _update(self, confusion: Tensor) -> None:
        score = -self.step_size * self.groups.mean(_recalls(confusion))
        if self.beta > 0:
            previous = self.groups.sum(self.lam.to(confusion))
            # A multiplier that has underflowed would stay 0 for ever.
            score = score + self.beta * previous.clamp_min(torch.finfo(previous.dtype).tiny).log()
        self.lam.copy_(self.groups.spread(score.softmax(0)))

    def _metric(self, confusion: Tensor) -> Tensor:
        return self.groups.mean(_recalls(confusion)).min()


class Constrained(Objective):
    """`(base + sum_j lam_j g_j) / (1 + max_j lam_j)`; group means of the g_j(C) shall be >= 0.

    `update` sets `lam = max(lambda_max (1 - exp(g / tau)), 0)` per group and shares it evenly by
    the members: no memory, zero where the constraint holds, never above lambda_max. The division
    keeps the size of the gradient comparable when multipliers are large.
    """

    lam: Tensor

    def __init__(
        self,
        base: Objective,
        terms: Function,
        groups: Groups,
        labels: Sequence[str],
        *,
        tau: float,
        lambda_max: float,
        by_class: bool,
    ) -> None:
        super().__init__(base.num_classes)
        self.base, self.terms, self.groups = base, terms, groups
        self.labels, self.by_class = tuple(labels), by_class
        self.tau, self.lambda_max = tau, lambda_max
        self.register_buffer("lam", torch.zeros(len(groups.index), dtype=torch.float64))

    @property
    def multipliers(self) -> Tensor | None:
        """The (K,) multipliers of coverage constraints; `lam` (J,) has those of other ones."""
        return self.lam if self.by_class else self.base.multipliers

    def _value(self, confusion: Tensor) -> Tensor:
        lam = self.lam.to(confusion)
        return (self.base._value(confusion) + (lam * self.terms(confusion)).sum()) / (1 + lam.max())

    def _merit(self, confusion: Tensor) -> Tensor:
        """Base minus a penalty with slope `lam`; scaled like `value` at the present multipliers."""
        violated = self._group_slack(confusion).clamp_max(0)
        penalty = self.tau * torch.expm1(violated / self.tau) - violated
        return (self.base._merit(confusion) - self.lambda_max * penalty.sum()) / (
            1 + self.lam.to(confusion).max()
        )

    def _update(self, confusion: Tensor) -> None:
        self.base._update(confusion)
        # exp(g / tau) <= 1 wherever it matters, so clamping first is exact and cannot overflow.
        pressure = torch.expm1((self._group_slack(confusion) / self.tau).clamp_max(0)).abs()
        self.lam.copy_(self.groups.spread(self.lambda_max * pressure))

    def _metric(self, confusion: Tensor) -> Tensor:
        return self.base._metric(confusion)

    def _slacks(self, confusion: Tensor) -> dict[str, float]:
        slack = self._group_slack(confusion)
        own = slack.min()[None] if len(self.labels) == 1 else slack
        found = self.base._slacks(confusion)
        for label, value in zip(self.labels, own.tolist(), strict=True):
            found[_unlike(label, found)] = value
        return found

    def _group_slack(self, confusion: Tensor) -> Tensor:
        # Multipliers belong to the matrix at which the gradient is taken, and its rows are
        # rescaled.
        return self.groups.mean(self.terms(_balance(confusion)))


def _unlike(label: str, taken: Container[str]) -> str:
    """The label, numbered if a constraint further in has it already: none may hide another."""
    numbered = (f"{label}_{i}" for i in itertools.count(2))
    return label if label not in taken else next(n for n in numbered if n not in taken)


def _coverage_terms(confusion: Tensor, alpha: float) -> Tensor:
    return _balance(confusion).sum(0) - alpha / len(confusion)


def _stacked_terms(confusion: Tensor, functions: Sequence[Function]) -> Tensor:
    return torch.stack([_result(function, confusion) for function in functions])


def _tried(function: Function, num_classes: int) -> Function:
    """The function, once it gave something to differentiate: its first use may be hours away."""
    with torch.inference_mode(False), torch.enable_grad():
        part = torch.full((num_classes,), 0.5, dtype=torch.float64)
        value = _result(function, _balance(part.requires_grad_().diag() + 0.5 / num_classes))
    if not value.requires_grad:
        raise ValueError(
            f"{_name_of(function, 'the objective')} must depend on the confusion matrix in a way "
            "that can be differentiated; compute it in torch, without .item(), .detach(), "
            "comparisons or arg-max"
        )
    return function


def _place_of(function: Function) -> torch.device:
    """Where a function is called: with a module's tensors, else on the CPU, whatever trains."""
    tensors: Iterable[Tensor] = ()
    if isinstance(function, nn.Module):
        tensors = itertools.chain(function.parameters(), function.buffers())
    return next((t.device for t in tensors), torch.device("cpu"))


def _result(function: Function, confusion: Tensor) -> Tensor:
    # Constants in a user's function are where he made them, and the matrix is small.
    given, confusion = confusion, confusion.to(_place_of(function))
    try:
        value = function(confusion)
    except Exception as error:
        plain = getattr(function, "func", function)  # that of a functools.partial
        if isinstance(error, ValueError) and getattr(plain, "__module__", "") == __name__:
            raise  # the examples below say themselves what is wrong
        code = getattr(plain, "__code__", None)
        reason = plugins.blame(error, code.co_filename if code else "")
        raise ValueError(
            f"{_name_of(function, 'the objective')} fails on a confusion matrix of "
            f"{len(confusion)} classes: {reason}; correct the function"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(
            "a function of the confusion matrix must return a scalar tensor, "
            f"{_name_of(function, 'it')} returned "
            f"{tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}; "
            "reduce it with .sum() or .mean(), in torch so that it can be differentiated"
        )
    return value.reshape(()).to(given.device)


def _geometric_mean(recall: Tensor) -> Tensor:
    return recall.log().mean().exp()


def _harmonic_mean(recall: Tensor) -> Tensor:
    return recall.reciprocal().mean().reciprocal()


_MEANS: dict[str, tuple[Function, float]] = {
    "mean_recall": (torch.mean, 0.0),
    "g_mean": (_geometric_mean, RECALL_FLOOR),
    "h_mean": (_harmonic_mean, RECALL_FLOOR),
}

# option -> default, lowest, highest, whether the lowest is itself allowed
_RANGES: dict[str, tuple[float, float, float, bool]] = {
    "step_size": (50.0, 0.0, math.inf, False),  # val_lr in the released code
    "beta": (0.0, 0.0, 1.0, True),
    "alpha": (0.95, 0.0, 1.0, False),  # coverages sum to 1: above 1 no classifier can satisfy all
    "tau": (0.01, 0.0, math.inf, False),
    "lambda_max": (100.0, 0.0, math.inf, False),
}


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
                f"{objective.num_classes}; "
                "build it again with get(name, num_classes)"
            )
        return objective
    if not isinstance(objective, str):
        return FunctionObjective(num_classes, _tried(objective, num_classes))
    index, coverage_labels = list(range(num_classes)), ["min_coverage"]
    if "_ht_" in objective:
        tail = _tail_classes(num_classes, options["tail"])
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
        c if isinstance(c, tuple) else (_name_of(c, f"constraint_{i}"), c)
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
            title = (
                objective if isinstance(objective, str) else _name_of(objective, "this function")
            )
            has = ", ".join((*allowed, "constraints"))
            raise ValueError(
                f"objective {title} has no option {option!r}; its options are: {has}"
                + ("" if constrained else " (which bring tau and lambda_max)")
            )
    values: dict[str, Any] = {"tail": options.get("tail")}
    for option, (default, low, high, closed) in _RANGES.items():
        value = options.get(option, default)
        number = (
            isinstance(value, int | float) and math.isfinite(value) and not isinstance(value, bool)
        )
        if not number or value < low or value > high or (value == low and not closed):
            rule = f"{'>=' if closed else '>'} {low:g}" + (
                f" and <= {high:g}" if high < math.inf else ""
            )
            raise ValueError(
                f"{option} must be {rule} and finite, got {value!r}; the default is {default:g}"
            )
        values[option] = float(value)
    return values


def _tail_classes(num_classes: int, tail: Iterable[int] | None) -> set[int]:
    if tail is None:
        return set(range(num_classes - tail_size(num_classes), num_classes))
    given = [int(i) for i in tail]
    inside = all(0 <= i < num_classes for i in given)
    if not inside or len(set(given)) != len(given) or not 0 < len(given) < num_classes:
        raise ValueError(
            f"tail must be some but not all of the classes 0..{num_classes - 1}, each once, "
            f"got {given}; "
            f"the default is the last {tail_size(num_classes)}"
        )
    return set(given)


def _name_of(function: object, default: str) -> str:
    # A functools.partial carries the name of what it wraps.
    return str(getattr(getattr(function, "func", function), "__name__", default)).strip("_<>")


def import_function(where: str) -> Function:
    """A function of the confusion matrix from "my_module:function" or "./file.py:function".

    Raises:
        ValueError: it cannot be imported, or is no function.
    """
    module_name, separator, attribute = where.rpartition(":")
    if not separator:
        near = difflib.get_close_matches(where, DESCRIPTIONS, n=3, cutoff=0.4) or list(DESCRIPTIONS)
        raise ValueError(
            f"unknown objective {where!r}; nearest: {', '.join(near)}. For your own function "
            "pass it, or "
            "'my_module:function' or './file.py:function'"
        )
    try:
        module = (
            plugins.import_file(Path(module_name))
            if module_name.endswith(".py")
            else importlib.import_module(module_name)
        )
        function = getattr(module, attribute)
    except (
        Exception
    ) as error:  # whatever a user's file raises is the reason, and stays attached as the cause
        raise ValueError(
            f"cannot import objective {where!r}: {type(error).__name__}: {error}; write "
            "'my_module:function' with the "
            "module on PYTHONPATH, or './file.py:function' relative to the working directory"
        ) from error
    if not callable(function):
        raise ValueError(
            f"objective {where!r} must be a function, got {type(function).__name__}; name a "
            "callable"
        )
    checked: Function = function
    return checked


@dataclass
class Config:
    """Which objective an algorithm trains for; an option that is None is the objective's own."""

    objective: str = "min_recall"
    constraints: list[str] = field(default_factory=list)  # ./file.py:function, to be >= 0
    step_size: float | None = None  # of the recall multipliers (released val_lr); None: 50
    beta: float | None = None  # memory of the recall multipliers; None: 0
    alpha: float | None = None  # least coverage, as a share of 1/K; None: 0.95
    tau: float | None = None  # softness of the coverage constraint; None: 0.01
    lambda_max: float | None = None  # largest coverage multiplier; None: 100

    def build_objective(self, task: Task) -> Objective:
        """The configured objective; the tail is told by the labeled counts."""
        names = ("step_size", "beta", "alpha", "tau", "lambda_max")
        options: dict[str, Any] = {n: v for n in names if (v := getattr(self, n)) is not None}
        if self.constraints:
            options["constraints"] = [import_function(c) for c in self.constraints]
        known = self.objective in DESCRIPTIONS
        if known and "tail" in option_names(self.objective):
            options["tail"] = task.tail
        return get(self.objective, task.num_classes, **options)


def report(objective: Objective, confusion: Tensor, *, ranked: bool) -> dict[str, Tensor]:
    """What an algorithm logs of its objective: the figure and the slack of every constraint.

    With `ranked`, also `feasibility`, which comes before the figure when weights are compared.
    """
    logs = {"objective": torch.tensor(objective.metric(confusion))}
    for name, slack in objective.constraints(confusion).items():
        logs[f"slack_{name}"] = torch.tensor(slack)
    if ranked:
        feasibility = objective.feasibility(confusion)
        logs["feasibility"] = torch.tensor(feasibility, dtype=torch.float64)
    return logs


# Worked examples: objectives and constraints that are not in the paper, each a plain function of
# the confusion matrix.


def macro_f1(confusion: Tensor) -> Tensor:
    """Mean over classes of the F1 score. Pass the function itself: `get(macro_f1, K)`.

    Shape: (K, K) -> ().
    """
    return (2 * confusion.diagonal() / (confusion.sum(0) + confusion.sum(1))).mean()


def recall_of(cls: int) -> Function:
    """Recall of one class, for instance under a bound on its precision.

    Examples:
        >>> objective = get(recall_of(1), 2, constraints=[precision_at_least(1, 0.7)])
        >>> confusion = torch.tensor([[0.35, 0.15], [0.20, 0.30]])
        >>> round(objective.metric(confusion), 3)
        0.6
        >>> {name: round(slack, 3) for name, slack in objective.constraints(confusion).items()}
        {'precision_at_least': -0.033}
    """
    return functools.partial(_recall_of, cls=_class_index(cls))


def precision_at_least(cls: int, bound: float) -> Function:
    """Constraint: precision of one class minus the bound; a class never predicted has 0."""
    if not 0 < bound <= 1:
        raise ValueError(
            f"a bound on precision must be in (0, 1], got {bound}; pass a fraction such as 0.8"
        )
    return functools.partial(_precision_at_least, cls=_class_index(cls), bound=bound)


def cost_matrix(costs: Tensor) -> Function:
    """Negative expected cost, where costs[i, j] is what it costs to predict j when the truth is i.

    Shape: costs (K, K).

    Examples:
        >>> objective = get(cost_matrix(torch.tensor([[0.0, 1.0], [10.0, 0.0]])), 2)
        >>> objective.metric(torch.tensor([[45, 5], [2, 48]]))
        -0.25
    """
    costs = torch.as_tensor(costs)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1] or not bool(costs.isfinite().all()):
        raise ValueError(
            f"costs must be a finite (K, K) matrix, got {tuple(costs.shape)}; rows are the "
            "true classes"
        )
    return functools.partial(_negative_cost, costs=costs)


def _class_index(cls: int) -> int:
    if isinstance(cls, bool) or not isinstance(cls, int) or cls < 0:
        raise ValueError(f"cls must be a class index >= 0, got {cls!r}; count classes from 0")
    return cls


def _recall_of(confusion: Tensor, cls: int) -> Tensor:
    if cls >= len(confusion):
        raise ValueError(
            f"cls must be below the number of classes {len(confusion)}, got {cls}; count from 0"
        )
    return confusion[cls, cls] / confusion[cls].sum()


def _precision_at_least(confusion: Tensor, cls: int, bound: float) -> Tensor:
    if cls >= len(confusion):
        raise ValueError(
            f"cls must be below the number of classes {len(confusion)}, got {cls}; count from 0"
        )
    predicted = confusion[:, cls].sum()
    return confusion[cls, cls] / predicted.clamp_min(torch.finfo(predicted.dtype).tiny) - bound


def _negative_cost(confusion: Tensor, costs: Tensor) -> Tensor:
    if costs.shape != confusion.shape:
        raise ValueError(
            f"costs must be {tuple(confusion.shape)} like the confusion matrix, got "
            f"{tuple(costs.shape)}"
        )
    return -(costs.to(confusion) * confusion).sum() / confusion.sum()
