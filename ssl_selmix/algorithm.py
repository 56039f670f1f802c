"""The contract of a training algorithm: what it is given, what it returns.

Shapes: B labeled images, M unlabeled images, N evaluated images, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from warnings import warn

import torch
from torch import Tensor, nn

from ssl_selmix.common.fields import completed
from ssl_selmix.common.names import short_name, unknown
from ssl_selmix.common.plugins import load_module
from ssl_selmix.common.rules import Checked, Rules, at_least, one_of, positive, within
from ssl_selmix.data.batch import Batch, Task, Views
from ssl_selmix.metrics import NAMES, confusion_matrix
from ssl_selmix.models.execution import in_mode
from ssl_selmix.models.tuning import layer_scales, merged

if TYPE_CHECKING:
    from ssl_selmix.data import Data
    from ssl_selmix.models import Classifier


__all__ = [
    "Algorithm",
    "Batch",
    "Context",
    "Evaluation",
    "Rules",
    "Task",
    "Views",
    "keeps_rows",
    "load",
    "weighs_labels",
]


# No scalar, or less is better.
NOT_SELECTABLE = ("per_class_recall", "per_class_coverage", "ece", "classwise_ece", "reliability")
CURRICULUM = 0.7  # alpha of the curriculum of mu in Fast FixMatch
SCHEDULES = ("cosine_7_16", "cosine", "constant")


def _cannot_evaluate(model: Algorithm) -> Evaluation:
    raise RuntimeError("this context has no images; give it evaluate=")


@dataclass(frozen=True)
class Context:
    """Where training stands: finished steps, all steps, the averaged model, the scheduled rate.

    evaluate measures a model, as it is now, on the validation images. origin is the network that
    the stage before this one began with, for a method that `needs_origin`; it is not to be changed.
    """

    step: int
    total: int
    teacher: Algorithm
    lr: float = 0.0
    evaluate: Callable[[Algorithm], Evaluation] = _cannot_evaluate
    origin: Classifier | None = None

    @property
    def progress(self) -> float:
        """Share of the steps that are done, 0 to 1."""
        return self.step / self.total

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"ctx has no {name}; it has step, total, progress, lr and teacher")


@dataclass(frozen=True)
class Evaluation:
    """The averaged model on un-augmented held-out images.

    Shape: features N×D, logits N×K, labels (N,); pool_logits M×K over the unlabeled pool, only
    if `Algorithm.needs_pool` asked for them; only what `Algorithm.needs_features` named of
    pool_features M×D and of labeled_features n×D with labeled_classes (n,).
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    pool_logits: Tensor | None = None
    pool_features: Tensor | None = None
    labeled_features: Tensor | None = None
    labeled_classes: Tensor | None = None

    @property
    def confusion(self) -> Tensor:
        """Joint confusion matrix K×K, rows = true class, float64, sum 1."""
        return confusion_matrix(self.labels, self.logits.argmax(1), self.logits.shape[1])


Forward = TypeVar("Forward", bound=Callable[..., Any])


def keeps_rows(forward: Forward) -> Forward:
    """Promise that row i of every output of this `forward` depends on row i of the input only.

    Then each of several processes need decode only its rows of a batch from files. The promise is
    that of the decorated function: a subclass with a `forward` of its own makes it anew, or not.
    """
    forward.keeps_rows = True  # type: ignore[attr-defined]
    return forward


def weighs_labels(forward: Forward) -> Forward:
    """Promise that the labeled losses of this `forward` are of `batch.target` or `batch.masses`.

    Then images may have weights. The promise is that of the decorated function, as of `keeps_rows`;
    a run with weights refuses a method without it.
    """
    forward.weighs_labels = True  # type: ignore[attr-defined]
    return forward


class Algorithm(nn.Module):
    """A network with what a method adds to it: heads as modules, state as buffers.

    A method is a subclass with `forward`; everything else has a default. Parameters that the
    method does not train have `requires_grad = False`.
    """

    # False: takes no step. All its work is in the one `on_validation`, and `Config` derives from
    # `Algorithm.FixedConfig`. It needs weights to start from.
    trains = True
    needs_classifier = True  # False: it makes a classifier of its own, and needs a body only
    # True: `ctx.origin` holds what the stage before began with, so that two stages must come first.
    needs_origin = False
    # The plug-in that takes this one's place after another stage, for a method of which a part
    # applies to any trained network.
    after: ClassVar[str] = ""
    views: Sequence[str] = ("weak", "strong")  # made from each unlabeled image; repeats allowed
    forwards: Sequence[str] = ("joint",)  # how it can look at its views: see `methods.views.Look`
    # False: its `batches` draws as many unlabeled images in every step, whatever `mu_from` says
    follows_curriculum: ClassVar[bool] = True
    head_name = "classifier"  # of the module that `head` uses, for the results
    figures: Sequence[str] = ()  # scalars of `on_validation` that `select` may name
    # Settings that the contract is checked with, for a method of which little happens by default
    # within a few steps: those of the first mapping in all checks, of each in that of `forwards`.
    contract_cases: Sequence[Mapping[str, Any]] = ({},)

    @dataclass
    class Config(Checked):
        """What every stage can be told; a method's Config adds its own fields."""

        steps: int = at_least(1, 10_000)  # T, how many steps the optimizer takes
        batch: int = at_least(1, 64)  # B, labeled images a step
        lr: float = positive(0.03)  # eta, learning rate at the start of the schedule
        # who takes the steps. sgd: as the papers; adamw: torch's, with momenta of 0.9 and 0.999 and
        # decoupled weight decay, which pre-trained networks usually want
        optimizer: str = one_of("sgd", "adamw")
        momentum: float = within("[0, 1)", 0.9)  # share of SGD's last step in the next
        nesterov: bool = True  # whether SGD looks ahead with its momentum (Nesterov)
        # how strongly weights are pulled to 0; biases and norms are not
        weight_decay: float = at_least(0, 5e-4)
        # how lr falls. cosine_7_16: by cos(7 pi t / 16 T), as in FixMatch; cosine: to 0 by half a
        # cosine; constant: not at all
        schedule: str = one_of(*SCHEDULES)
        # what the teacher, the running mean of the weights, keeps of itself in a step; the teacher
        # is validated and handed on. 0: the trained weights themselves
        ema: float = within("[0, 1)", 0.999)
        # how the teacher forgets the first steps, before `ema` is reached. tenth: it is the mean of
        # the last tenth of the steps; mean: of all steps; none: `ema` holds from the beginning
        ema_warmup: str = one_of("tenth", "none", "mean")
        # the teacher's batch statistics. copy: those of the network that learns; average: their
        # running mean, like that of the weights
        ema_buffers: str = one_of("copy", "average")
        evaluate_every: int = at_least(
            1, 500
        )  # steps between two validations, each with a checkpoint
        # which weights the stage hands on. best: those of the best validation, by `select`; last
        keep: str = one_of("best", "last")
        select: str = "mean_recall"  # figure on validation by which keep=best chooses

        def __post_init__(self) -> None:
            """Refuse a momentum that the optimizer has none of."""
            super().__post_init__()
            if self.optimizer == "adamw" and self.momentum != type(self).momentum:
                raise ValueError(
                    f"momentum={self.momentum} is that of optimizer=sgd, and adamw has momenta of "
                    "its own; leave it out"
                )

    @dataclass
    class PoolConfig(Config):
        """What a method can be told that draws unlabeled images beside the labeled ones."""

        mu: int = at_least(1, 2)  # mu, unlabeled images per labeled image
        # mu at the first step, from which it rises to mu (Fast FixMatch); 0: mu at every step
        mu_from: int = at_least(0, 0)

        def __post_init__(self) -> None:
            """Refuse a beginning above the end."""
            super().__post_init__()
            if self.mu_from > self.mu:
                raise ValueError(
                    f"mu_from={self.mu_from} is to rise to mu={self.mu}; set a smaller one, or "
                    "mu_from=0 for the same mu at every step"
                )

        def mu_at(self, progress: float) -> int:
            """Unlabeled images per labeled one, when this share of the steps, 0 to 1, is done.

            A bounded exponential s from 0 to 1, flat at first, as in Fast FixMatch (Chen, Dun &
            Kyrillidis, 2023): s(t) = 1 - (1 - t) / ((1 - a) + a (1 - t)), a = 0.7. Rounded, so
            that steps have few sizes.
            """
            if not self.mu_from:
                return self.mu
            left = 1 - progress
            rise = 1 - left / ((1 - CURRICULUM) + CURRICULUM * left)
            return round(self.mu_from + (self.mu - self.mu_from) * rise)

        @property
        def mean_mu(self) -> float:
            """Its mean over the steps."""
            if not self.mu_from:
                return self.mu
            return sum(self.mu_at((i + 0.5) / 100) for i in range(100)) / 100

    @dataclass
    class FixedConfig(Config):
        """What a stage can be told that takes no step: nothing of what steps are made by."""

        steps: ClassVar[int] = 0  # type: ignore[misc]
        batch: ClassVar[int] = 0  # type: ignore[misc]
        lr: ClassVar[float] = 0.0  # type: ignore[misc]
        optimizer: ClassVar[str] = "sgd"  # type: ignore[misc]
        momentum: ClassVar[float] = 0.0  # type: ignore[misc]
        nesterov: ClassVar[bool] = False  # type: ignore[misc]
        weight_decay: ClassVar[float] = 0.0  # type: ignore[misc]
        schedule: ClassVar[str] = "constant"  # type: ignore[misc]
        ema: ClassVar[float] = 0.0  # type: ignore[misc]
        ema_warmup: ClassVar[str] = "none"  # type: ignore[misc]
        ema_buffers: ClassVar[str] = "copy"  # type: ignore[misc]
        evaluate_every: ClassVar[int] = 1  # type: ignore[misc]
        keep: ClassVar[str] = "last"  # type: ignore[misc]
        select: ClassVar[str] = "mean_recall"  # type: ignore[misc]

    def __init_subclass__(cls, **options: Any) -> None:
        """Accept `mixes_images = False` beside `forward`, as version 0.1 had it."""
        super().__init_subclass__(**options)
        own = vars(cls)
        if own.get("mixes_images") is False and "forward" in own:
            text = "mixes_images = False is @keeps_rows on forward now (ssl_selmix.algorithm)"
            warn(text, DeprecationWarning, stacklevel=2)
            keeps_rows(own["forward"])

    @classmethod
    def needs_pixels(cls, config: Config) -> str:
        """Why a method needs images, and cannot work on features in their place; "": it can."""
        return ""

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        """Add to the network what the method needs.

        Raises:
            ValueError: `select` names no figure.
        """
        super().__init__()
        self.net = net
        self.task = task
        self.config = config
        if getattr(config, "mu_from", 0) and not self.follows_curriculum:
            raise ValueError(
                f"mu_from={config.mu_from} cannot act, for this method counts on the same number "  # type: ignore[attr-defined]
                "of unlabeled images in every step; leave it out"
            )
        known = (*self.figures, *(n for n in NAMES if n not in NOT_SELECTABLE))
        if config.select not in known:
            raise ValueError(f"select: {unknown('figure', config.select, known)}")

    def __call__(self, *given: Any, **named: Any) -> Any:
        """A step, `forward(batch, ctx)`; or of normalised images alone, what it predicts.

        `ctx.teacher(x)` are logits N×K, in evaluation mode and without gradient, so that nothing
        of the teacher changes.

        Raises:
            TypeError: of one argument that is no tensor; says what to call.
        """
        if len(given) + len(named) != 1:
            return super().__call__(*given, **named)
        (x,) = (*given, *named.values())
        if not isinstance(x, Tensor):
            raise TypeError(
                f"call a method with images for its predictions, as in ctx.teacher(batch.x), or "
                f"with (batch, ctx) for a step, not with {type(x).__name__} alone"
            )
        with torch.no_grad(), in_mode(self, training=False):
            return self.predict(x)

    def forward(self, batch: Batch, ctx: Context) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step: the weighted losses, whose sum is minimised, and detached scalars to log."""
        raise NotImplementedError

    def head(self, features: Tensor) -> Tensor:
        """Logits N×K of the head that this method predicts with, from features N×D."""
        return self.net.classifier(features)  # type: ignore[no-any-return]

    def predict(self, x: Tensor) -> Tensor:
        """Logits N×K of normalised images N×C×H×W."""
        return self.head(self.net.features(x))

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        """Endless batches from step `start` on; batch t depends on the seed and t alone."""
        mu: int | Callable[[int], int] = _mu(self.config)
        if isinstance(cfg := self.config, Algorithm.PoolConfig) and cfg.mu_from:
            mu = self._mu_at
        return data.batches(self.views, cfg.batch, mu, start)

    def _mu_at(self, step: int) -> int:
        """Unlabeled images per labeled one at a step, by the clock that the learning rate has."""
        now, length = self.clock(step)
        assert isinstance(self.config, Algorithm.PoolConfig)
        return self.config.mu_at(now / length)

    @property
    def images_per_step(self) -> int:
        """Images that pass the network in a joint step, on average, for the throughput."""
        return round(self.config.batch * (1 + mean_mu(self.config) * len(self.views)))

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups; `lr_scale` multiplies the scheduled rate."""
        trained = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim > 1], "lr_scale": 1.0},
            {"params": [p for p in trained if p.ndim <= 1], "lr_scale": 1.0, "weight_decay": 0.0},
        ]
        return groups if self.net.layer_decay == 1 else _by_layer(groups, layer_scales(self.net))

    def lr_factor(self) -> float:
        """Multiplies the scheduled rate at every step: for a method that finds its own."""
        return 1.0

    def evaluation_due(self, step: int) -> bool:
        """Whether to validate before this step; the first and the last step always do."""
        return step % self.config.evaluate_every == 0

    def needs_pool(self, step: int) -> bool:
        """Whether the validation before this step looks at the unlabeled pool too."""
        return False

    def needs_features(self, step: int) -> Collection[str]:
        """Of which un-augmented images the validation before this step keeps features as well.

        "labeled", "pool": they are in the evaluation's fields of these names then.
        """
        return ()

    def clock(self, step: int) -> tuple[int, int]:
        """Step and length by which the schedule and the teacher's warm-up count.

        A clock that goes back to 0 begins anew: after the validation before that step `restart`
        is called, the teacher becomes a copy, and the optimizer forgets its momenta.
        """
        return step, self.config.steps

    def restart(self, ctx: Context) -> None:
        """Called when `clock` is back at 0: change weights and data for what follows."""

    def recover(self, ctx: Context) -> bool:
        """Called when losses or predictions are no numbers; True if good weights are back."""
        return False

    def finished(self) -> bool:
        """Whether to end the stage now, asked after every validation."""
        return False

    def after_step(self, ctx: Context) -> None:
        """Called when the optimizer and the teacher have been updated."""

    def decide(self, evaluation: Evaluation, ctx: Context) -> Evaluation:
        """Called with every validation, before its figures are taken and the weights compared.

        May move the weights, as long as what it returns is what they predict then.
        """
        return evaluation

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Called with every validation, the first before step 0; returns what to log.

        Scalars and K-vectors go to the metrics, K×K matrices become pictures. A scalar called
        `feasibility`, at most 0, comes before everything else when the best weights are chosen.
        """
        return {}

    @property
    def hands_on_linear(self) -> bool:
        """Whether the exported network ends in a linear layer, as what follows needs it."""
        return True

    def remarks(self) -> Sequence[str]:
        """Sentences about the validation that was last, which the user is shown after it."""
        return ()

    def export(self) -> Classifier:
        """A network of its own that predicts what `predict` predicts."""
        return merged(self.net)


def _by_layer(
    groups: Sequence[dict[str, Any]], scales: Mapping[int, float]
) -> list[dict[str, Any]]:
    """The groups, each parted into those of the layers, which learn at rates of their own."""
    found = []
    for group in groups:
        of_layers: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            of_layers.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
        for scale, params in of_layers.items():
            found.append({**group, "params": params, "lr_scale": group["lr_scale"] * scale})
    return found


def _mu(config: Algorithm.Config) -> int:
    """Unlabeled images per labeled one; a method without settings of its own has the default."""
    return config.mu if isinstance(config, Algorithm.PoolConfig) else Algorithm.PoolConfig.mu


def mean_mu(config: Algorithm.Config) -> float:
    """Unlabeled images per labeled one, on average over the steps."""
    return config.mean_mu if isinstance(config, Algorithm.PoolConfig) else _mu(config)


def load(name: str, *, first: bool = True) -> tuple[str, type[Algorithm]]:
    """Short name and class of an algorithm: `fixmatch`, `./my.py`, `mylab.methods:MyAlgo`.

    If it is not the first of a run it may be another class, see `Algorithm.after`.

    Raises:
        ValueError: nothing of that name, or not exactly one Algorithm in the file.
    """
    location, _, wanted = name.partition(":")
    module = load_module("algorithm", location, anywhere=bool(wanted))
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Algorithm)
        and value.__module__ == module.__name__
    ]
    if wanted:
        found = [value for value in found if value.__name__ == wanted]
    if len(found) != 1:
        raise ValueError(
            f"{location} must define one Algorithm{f' named {wanted}' if wanted else ''}, "
            f"it defines {len(found)}; name one as {location}:CLASS"
        )
    found[0].Config = completed(found[0].Config)  # type: ignore[misc]
    kind = found[0]
    return short_name(name), kind if first or not kind.after else load(kind.after)[1]
