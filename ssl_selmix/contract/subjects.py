"""What the checks are applied to: a small data set, a small network, a method's settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_selmix import models
from ssl_selmix.algorithm import Algorithm, Batch, Context, Views, load
from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.data import Data, Diagnostics, ImageSet, assemble
from ssl_selmix.models import Classifier
from ssl_selmix.splits import Counts, LongTailSplit
from ssl_selmix.training import checkpoint, engine
from ssl_selmix.training.log import SilentLog, StageLog

TINY = {"steps": 4, "batch": 4, "evaluate_every": 2}


class Broken(AssertionError):
    """A promise that is not kept: what the contract demands and what to do."""


class Skipped(Exception):
    """A check that has no meaning for this algorithm, and why."""


def demand(condition: object, message: str) -> None:
    """Raise Broken with this message unless the condition holds."""
    if not condition:
        raise Broken(message)


def demand_steps(kind: type[Algorithm]) -> None:
    """Skip a check of what happens in steps, for a stage that takes none."""
    if not kind.trains:
        raise Skipped("it takes no step (trains = False)")


class Recorder(Views):
    """Views that remember which of them were asked for."""

    def __init__(self, views: Views) -> None:
        self.views = views
        self.asked: set[int] = set()

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, view: int) -> Tensor:
        self.asked.add(view)
        return self.views[view]

    def select(self, view: int, rows: Tensor) -> Tensor:
        """Some images of a view."""
        self.asked.add(view)
        return self.views.select(view, rows)


def make_source(num_classes: int = 3, per_class: int = 20) -> ImageSet:
    """Noisy copies of one 8×8 pattern per class."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(2, (num_classes, 1, 8, 8), generator=generator) * 180
    labels = np.arange(num_classes).repeat(per_class)
    noise = torch.randint(76, (len(labels), 1, 8, 8), generator=generator)
    return ImageSet(
        train=(patterns[torch.from_numpy(labels)] + noise).to(torch.uint8),
        train_labels=labels,
        class_names=tuple("abc"[:num_classes]),
        mean=(127.5,),
        std=(94.0,),
        weak=Weak(pad=1, flip=False),
        strong=Strong(weak=Weak(pad=1, flip=False), num_ops=1, ops=("contrast", "translate_x")),
    )


def make_data(num_classes: int = 3, pool_labels: int | None = None) -> tuple[Data, Diagnostics]:
    """The data of a run; `pool_labels` overwrites the pool's true labels after the split."""
    source = make_source(num_classes)
    rule = LongTailSplit(Counts(6, rho=3), Counts(8, rho=2), validation=3, test=2)
    split = rule.draw(source.train_labels, num_classes, seed=0)
    if pool_labels is not None:
        labels = source.train_labels.copy()
        labels[split.unlabeled] = pool_labels
        source = dataclasses.replace(source, train_labels=labels)
    data, diagnostics = assemble(source, split, seed=0, device=torch.device("cpu"))
    return data.at_stage("1-test"), diagnostics


def make_net(data: Data, seed: int = 1) -> Classifier:
    """A small network with weights that follow from the seed."""
    torch.manual_seed(seed)
    return models.build(models.Config("cnn-4"), len(data.class_names), 1)


def origin_for(algorithm: Algorithm, data: Data) -> Classifier | None:
    """What the stage before a method began with, if the method needs it."""
    return make_net(data, seed=4) if algorithm.needs_origin else None


@dataclass(frozen=True)
class Subject:
    """The algorithm under test: its short name, its class, and settings beside `contract_cases`."""

    name: str
    kind: type[Algorithm]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def make(self, data: Data, net: Classifier | None = None, **options: Any) -> Algorithm:
        """The algorithm with few steps, on a network that is the same at each call.

        Raises:
            ValueError: the Config refuses a setting.
            TypeError: the Config has no such setting.
        """
        given = TINY | dict(self.kind.contract_cases[0]) | dict(self.settings) | options
        if not self.kind.trains:  # the checks say how to take steps, which it does not
            about_steps = {f.name for f in dataclasses.fields(Algorithm.Config)}
            given = {key: value for key, value in given.items() if key not in about_steps}
        settings = self.kind.Config(**given)
        net = net or make_net(data)
        torch.manual_seed(2)
        return self.kind(net, data.task, settings)

    def started(self, data: Data, **options: Any) -> tuple[Algorithm, Context]:
        """An algorithm after the validation that comes before its first step."""
        algorithm = self.make(data, **options).train()
        teacher = self.make(data, **options).requires_grad_(False)
        ctx = Context(
            0,
            TINY["steps"],
            teacher,
            evaluate=lambda model: engine.evaluate(model, data),
            origin=origin_for(algorithm, data),
        )
        evaluation = engine.evaluate_for(algorithm, teacher, data, 0)
        algorithm.on_validation(evaluation, ctx)
        return algorithm, ctx


def subject(name: str, **settings: Any) -> Subject:
    """The algorithm of this name, path or dotted name, perhaps with settings of its own.

    Raises:
        ValueError: there is none.
    """
    return Subject(*load(name), settings)


def take_step(
    algorithm: Algorithm, batch: Batch, ctx: Context
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What `forward` returns, with random numbers that are the same at each call."""
    torch.manual_seed(3)
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = algorithm(batch, ctx)
    shape = isinstance(found, tuple) and [isinstance(part, dict) for part in found] == [True, True]
    demand(
        shape and found[0] and all(isinstance(v, Tensor) for d in found for v in d.values()),
        "forward must return ({name: loss, ...}, {name: figure, ...}), at least one loss, all of "
        "them scalar tensors",
    )
    return found


def backward(algorithm: Algorithm, batch: Batch, ctx: Context) -> dict[str, Tensor]:
    """Losses of a step, and their gradients in the parameters."""
    losses, _ = take_step(algorithm, batch, ctx)
    algorithm.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    return losses


def fit(
    algorithm: Algorithm,
    data: Data,
    folder: Path,
    resume: bool = False,
    diagnostics: Diagnostics | None = None,
    log: StageLog | None = None,
    pauses: engine.Pauses | None = None,
    origin: Classifier | None = None,
) -> engine.Fitted:
    """A whole stage."""
    return engine.fit(
        *(algorithm, data, folder, log or SilentLog(), "f"),
        resume=resume,
        diagnostics=diagnostics,
        pauses=pauses,
        origin=origin_for(algorithm, data) if origin is None else origin,
    )


def saved(folder: Path) -> dict[str, str]:
    """Digests of a stage's checkpoints, without the wall time in them."""
    found = {path.name: checkpoint.load(path) for path in sorted(folder.glob("*.pt"))}
    return {
        name: checkpoint.digest({k: v for k, v in state.items() if k != "seconds"})
        for name, state in found.items()
    }


def digest(module: nn.Module) -> str:
    """Identity of all parameters and persistent buffers."""
    return checkpoint.digest(module.state_dict())


def demand_finite(module: nn.Module, when: str) -> None:
    """Demand numbers in all parameters and buffers."""
    for key, value in (*module.named_parameters(), *module.named_buffers()):
        demand(
            value.isfinite().all(),
            f"{key} is not finite {when}; guard divisions and logarithms (losses.log_prior has a "
            "floor)",
        )
