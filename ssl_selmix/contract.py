"""What every algorithm promises, as checks that take any class: `ssl-selmix check ./my_method.py`.

A check is a function of a `Subject` and an empty folder. Its docstring is its name in plain words;
it returns if the promise is kept and raises otherwise. All of them train on twenty noisy copies of
one 8×8 pattern per class, for a few steps, on the CPU.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import io
import itertools
import math
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch import Tensor, nn

from ssl_selmix import checkpoint, config, engine, models, plugins
from ssl_selmix.algorithm import Algorithm, Batch, Context, Evaluation, Views
from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.data import Data, Diagnostics, ImageSet, assemble
from ssl_selmix.forward import Look
from ssl_selmix.log import StageLog
from ssl_selmix.metrics import NAMES
from ssl_selmix.models import Classifier
from ssl_selmix.splits import Counts, LongTailSplit

TINY = {"steps": 4, "batch": 4, "evaluate_every": 2}


class Broken(AssertionError):
    """A promise that is not kept: what the contract demands and what to do."""


class Skipped(Exception):
    """A check that has no meaning for this algorithm, and why."""


def demand(condition: object, message: str) -> None:
    """Raise Broken with this message unless the condition holds."""
    if not condition:
        raise Broken(message)


# Tiny data, a tiny network, and what trains one on the other.


class Quiet(StageLog):
    """A log that keeps rows in memory and draws no picture."""

    def __init__(self) -> None:
        super().__init__(Path(), "test", (), Console(file=io.StringIO()), 1)
        self.rows: list[dict[str, Any]] = []
        self.extras: list[dict[str, Tensor]] = []  # what `on_validation` returned

    @contextmanager
    def stage(self, step: int, total: int, *, resumed: bool = False) -> Iterator[None]:
        """Open nothing."""
        yield

    def training(self, step: int, values: dict[str, float]) -> None:
        """Keep the row."""
        self.rows.append({"kind": "train", "step": step, **values})

    def validation(
        self, step: int, figures: dict[str, Any], extra: dict[str, Tensor], confusion: Tensor
    ) -> None:
        """Keep the row."""
        self.rows.append({"kind": "validation", "step": step, **figures, **extra})
        self.extras.append(extra)


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


def make_source(num_classes: int = 3) -> ImageSet:
    """Twenty noisy copies of one 8×8 pattern per class."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(2, (num_classes, 1, 8, 8), generator=generator) * 180
    labels = np.arange(num_classes).repeat(20)
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


@dataclass(frozen=True)
class Subject:
    """The algorithm under test, by its short name and its class."""

    name: str
    kind: type[Algorithm]
    settings: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # that wake a part of it up

    def make(self, data: Data, net: Classifier | None = None, **options: Any) -> Algorithm:
        """The algorithm with few steps, on a network that is the same at each call."""
        if hasattr(self.kind.Config, "threshold"):  # at 0 every pseudo-label takes part
            options.setdefault("threshold", 0.0)
        settings = self.kind.Config(**TINY | dict(self.settings) | options)
        net = net or make_net(data)
        torch.manual_seed(2)
        return self.kind(net, data.task, settings)

    def started(self, data: Data, **options: Any) -> tuple[Algorithm, Context]:
        """An algorithm after the validation that comes before its first step."""
        algorithm = self.make(data, **options).train()
        teacher = self.make(data, **options).requires_grad_(False)
        ctx = Context(0, TINY["steps"], teacher)
        evaluation = engine.evaluate(teacher, data, pool=algorithm.needs_pool(0))
        algorithm.on_validation(evaluation, ctx)
        return algorithm, ctx


def subject(name: str, **settings: Any) -> Subject:
    """The algorithm of this name, path or dotted name, perhaps with settings of its own.

    Raises:
        ValueError: there is none.
    """
    return Subject(*plugins.algorithm(name), settings)


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
) -> engine.Fitted:
    """A whole stage."""
    log = log or Quiet()
    return engine.fit(algorithm, data, folder, log, "f", resume=resume, diagnostics=diagnostics)


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


# The checks.


def gradients(subject: Subject, folder: Path) -> None:
    """Losses are finite scalars, and every trained parameter gets a gradient."""
    for num_classes in (2, 3):
        data, _ = make_data(num_classes)
        algorithm, ctx = subject.started(data)
        batch = next(algorithm.batches(data, 0))
        for key, loss in take_step(algorithm, batch, ctx)[0].items():
            demand(
                loss.ndim == 0 and loss.isfinite(),
                f"the loss {key!r} must be a finite scalar, not {_shown(loss)} ({num_classes} "
                "classes); take the mean over the batch, and guard logarithms",
            )
        backward(algorithm, batch, ctx)
        trained = {key: p for key, p in algorithm.named_parameters() if p.requires_grad}
        for key, parameter in trained.items():
            demand(
                parameter.grad is not None,
                f"{key} gets no gradient; use it in a loss, or freeze it: requires_grad_(False)",
            )
            assert parameter.grad is not None
            demand(parameter.grad.isfinite().all(), f"the gradient of {key} is not finite")
        moved = any(p.grad is not None and bool(p.grad.any()) for p in trained.values())
        demand(moved, "every gradient is zero; some loss must depend on a trained parameter")


def logs(subject: Subject, folder: Path) -> None:
    """Logs are detached, finite scalars under names of their own."""
    data, _ = make_data()
    algorithm, ctx = subject.started(data)
    losses, found = take_step(algorithm, next(algorithm.batches(data, 0)), ctx)
    for key, value in found.items():
        demand(
            not value.requires_grad and value.ndim == 0 and value.isfinite(),
            f"the log {key!r} must be a detached finite scalar tensor, not {_shown(value)}; "
            "end it in .mean().detach(), say",
        )
    taken = found.keys() & {"loss", "lr", "step", "kind", *(f"loss_{key}" for key in losses)}
    demand(not taken, f"the engine logs {', '.join(sorted(taken))} itself; choose another name")


def optimizer_groups(subject: Subject, folder: Path) -> None:
    """The optimizer gets every trained parameter once, and no frozen one."""
    data, _ = make_data()
    algorithm = subject.make(data)
    groups = algorithm.param_groups()
    given = [id(p) for group in groups for p in group["params"]]
    for key, parameter in algorithm.named_parameters():
        wanted, times = int(parameter.requires_grad), given.count(id(parameter))
        demand(
            times == wanted,
            f"param_groups names {key} {times} times instead of {wanted}; requires_grad decides "
            "whether a parameter is trained, and each trained one belongs to one group",
        )
    demand(
        len(given) == len([p for p in algorithm.parameters() if p.requires_grad]),
        "param_groups holds parameters that are no parameters of the algorithm; make their "
        "module an attribute",
    )
    demand(
        all("lr_scale" in group for group in groups),
        "every group of param_groups needs an lr_scale; 1.0 is the configured rate",
    )


def frozen(subject: Subject, folder: Path) -> None:
    """Frozen parameters of the network stay, and some trained parameter moves."""
    data, _ = make_data()
    algorithm = subject.make(data, keep="last", ema=0.0)
    before = {key: p.clone() for key, p in algorithm.named_parameters()}
    trained = {key for key, p in algorithm.named_parameters() if p.requires_grad}
    fixed = {f"net.{key}" for key, p in algorithm.net.named_parameters() if not p.requires_grad}
    fit(algorithm, data, folder)
    moved = {key for key, p in algorithm.named_parameters() if not torch.equal(p, before[key])}
    demand(
        not fixed & moved,
        f"{', '.join(sorted(fixed & moved))} moved although requires_grad is False; leave it "
        "alone, or let it be trained",
    )
    demand(trained & moved, "no parameter moved in 4 steps; the losses must train something")


def on_validation(subject: Subject, folder: Path) -> None:
    """What `on_validation` returns is detached, finite, and of a shape that can be logged."""
    data, _ = make_data()
    algorithm, ctx = subject.started(data)
    evaluation = engine.evaluate(algorithm, data, pool=algorithm.needs_pool(0))
    log = Quiet()
    fit(subject.make(data), data, folder, log=log)
    for extra in (algorithm.on_validation(evaluation, ctx), *log.extras):
        taken = extra.keys() & set(NAMES)
        demand(not taken, f"{', '.join(sorted(taken))} is measured already; choose another name")
        for key, value in extra.items():
            demand(
                isinstance(value, Tensor)
                and not value.requires_grad
                and value.shape in {(), (3,), (3, 3)}
                and bool(value.isfinite().all()),
                f"{key!r} must be a detached finite tensor: a scalar, (K,) or (K, K), not "
                f"{_shown(value)}",
            )


def views(subject: Subject, folder: Path) -> None:
    """A step asks for declared views only and leaves its inputs as they are."""
    data, _ = make_data()
    algorithm, ctx = subject.started(data)
    names = tuple(algorithm.views)
    demand(set(names) <= {"weak", "strong"}, f"a view is weak or strong, but views is {names}")
    images = data.images.clone()
    batch = next(algorithm.batches(data, 0))
    demand(
        len(batch.u) == len(names),
        f"batches makes {len(batch.u)} views and `views` declares {len(names)}; pass self.views on",
    )
    recorder = Recorder(batch.u)
    before = [t.clone() for t in (batch.x, batch.y, batch.index_u)]
    made = [batch.u[view].clone() for view in range(len(batch.u))]
    rows = torch.tensor([1, 0])
    for view, whole in enumerate(made):
        same = torch.equal(batch.u.select(view, rows), whole[rows])
        demand(same, f"u.select({view}, rows) must be u[{view}][rows]")
    backward(algorithm, dataclasses.replace(batch, u=recorder), ctx)
    undeclared = recorder.asked - set(range(len(names)))
    demand(not undeclared, f"forward asks for view {undeclared}, and `views` is {names}")
    after = [batch.x, batch.y, batch.index_u, *(batch.u[view] for view in range(len(batch.u)))]
    kept = [torch.equal(a, b) for a, b in zip([*before, *made], after, strict=True)]
    demand(
        all(kept) and torch.equal(data.images, images),
        "forward changes its batch; work on copies, not in place",
    )


def forwards(subject: Subject, folder: Path) -> None:
    """Joint, split and lazy steps give the same losses and gradients, but for batch statistics."""
    needed: list[Tensor] = []
    original = Look.rest

    def rest(look: Look, rows: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        needed.extend([] if rows is None else [rows])
        return original(look, rows)

    has_threshold = hasattr(subject.kind.Config, "threshold")
    cases: list[dict[str, Any]] = [{}]
    if has_threshold:  # from most to few pseudo-labels that count
        cases = [{"threshold": threshold} for threshold in (0.38, 0.6, 0.9)]
    with mock.patch.object(Look, "rest", rest):
        for case, scale in itertools.product(cases, (10.0, 100.0)):
            _same_steps(subject, case, scale)
    lazy = "lazy" in subject.kind.forwards
    some = [0 < int(rows.sum()) < len(rows) for rows in needed]
    demand(
        not lazy or any(some) or (needed and all(bool(rows.all()) for rows in needed)),
        '`forwards` has "lazy", and no step asked Look.rest for some of the images only; pass it '
        "which of them count",
    )


def _same_steps(subject: Subject, settings: dict[str, Any], scale: float) -> None:
    data, _ = make_data()
    found = {}
    for how in ("joint", "split", "lazy"):
        algorithm, ctx = subject.started(data, **settings)
        algorithm.net.step = how
        with torch.no_grad():
            algorithm.net.classifier.weight.mul_(scale)  # surer, and not of all images alike
        for module in models.batch_norms(algorithm.net):
            module.eval()  # statistics do depend on which images pass together
        batch = next(algorithm.batches(data, 0))
        losses = backward(algorithm, batch, ctx)
        found[how] = [*losses.values(), *(p.grad for p in algorithm.parameters())]
    for how in ("split", "lazy"):
        same = all(
            (a is b is None)
            or (a is not None and b is not None and torch.allclose(a, b, rtol=1e-4, atol=1e-5))
            for a, b in zip(found["joint"], found[how], strict=True)
        )
        remedy = "use joint_features, or Look and declare it in `forwards`"
        if how in algorithm.forwards:
            remedy = f'ask Look.rest for every image that counts, or take "{how}" out of `forwards`'
        demand(same, f"step.{how}=true changes losses or gradients; {remedy}")


def batches(subject: Subject, folder: Path) -> None:
    """A batch depends on seed, stage and step alone."""
    data, _ = make_data()

    def contents(data: Data, start: int, skip: int = 0) -> str:
        algorithm, _ = subject.started(data)
        batch = next(itertools.islice(algorithm.batches(data, start), skip, None))
        views = [batch.u[view] for view in range(len(batch.u))]
        return checkpoint.digest([batch.x, batch.y, batch.index_u, *views])

    expected = contents(data, 3)
    torch.manual_seed(99)
    remedy = "draw from data.generator('purpose', step) and from nothing else"
    demand(
        contents(data, 0, skip=3) == expected,
        f"batch 3 differs when batches 0 to 2 came before it; {remedy}",
    )
    demand(contents(data, 4) != expected, f"batches 3 and 4 are the same; {remedy}")
    other_seed = contents(dataclasses.replace(data, seed=1), 3)
    demand(other_seed != expected, f"another seed gives the same batch; {remedy}")
    other_stage = contents(data.at_stage("2-test"), 3)
    demand(other_stage != expected, f"another stage gives the same batch; {remedy}")


def teacher(subject: Subject, folder: Path) -> None:
    """A step does not touch the teacher."""
    data, _ = make_data()
    algorithm, ctx = subject.started(data)
    before = digest(ctx.teacher)
    backward(algorithm, next(algorithm.batches(data, 0)), ctx)
    demand(
        digest(ctx.teacher) == before,
        "forward changes ctx.teacher, which the engine averages; put it in eval mode within "
        "torch.no_grad(), and keep state in the algorithm itself",
    )
    without = all(p.grad is None for p in ctx.teacher.parameters())
    demand(without, "the teacher gets gradients; call it within torch.no_grad()")


def evaluation(subject: Subject, folder: Path) -> None:
    """Evaluating changes nothing and agrees with `predict`."""
    data, _ = make_data()
    algorithm, _ = subject.started(data)
    before = digest(algorithm)
    found = engine.evaluate(algorithm, data, pool=True)
    demand(
        digest(algorithm) == before and algorithm.training,
        "evaluation changes the state or the mode; `head` and `predict` must not write buffers",
    )
    pool = found.pool_logits
    assert pool is not None
    shapes = [tuple(found.logits.shape), tuple(pool.shape)]
    wanted = [(len(data.validation), 3), (len(data.unlabeled), 3)]
    demand(shapes == wanted, f"logits must be {wanted}, not {shapes}; `head` returns N×K")
    algorithm.eval()
    with torch.no_grad():
        predicted = algorithm.predict(next(data.plain(data.validation)))
    demand(
        torch.equal(predicted, found.logits),
        "`predict` and `head` disagree; define the head that predicts in `head` alone, for "
        "predict(x) is head(net.features(x))",
    )


def export(subject: Subject, folder: Path) -> None:
    """What `export` returns predicts what `predict` predicts, and is a network of its own."""
    data, _ = make_data()
    net = make_net(data)
    expected_momenta = [module.momentum for module in models.batch_norms(net)]
    fitted = fit(subject.make(data, net), data, folder).algorithm.eval()
    exported = fitted.export().eval()
    x = next(data.test_batches())
    with torch.no_grad():
        expected = fitted.predict(x)
        same = torch.equal(exported(x), expected)
        split = torch.equal(exported.classifier(exported.features(x)), expected)
    demand(
        same and split,
        "the exported network predicts something else; a method with a head of its own puts it "
        "there: net = super().export(); net.classifier.load_state_dict(self.my_head.state_dict())",
    )
    # Training what was exported must leave the stage that it came from alone.
    mine = {t.data_ptr() for t in (*fitted.parameters(), *fitted.buffers()) if t.numel()}
    theirs = {t.data_ptr() for t in (*exported.parameters(), *exported.buffers())}
    demand(not mine & theirs, "the exported network shares tensors with the algorithm; copy them")
    demand(
        [module.momentum for module in models.batch_norms(exported)] == expected_momenta,
        "batch norms come back with another momentum; restore it in `export`",
    )
    fitted.net.autocast = torch.bfloat16
    demand(
        exported.rebuild is not None and fitted.export().autocast is torch.bfloat16,
        "the exported network lacks `rebuild` or `autocast`; begin with super().export(), which "
        "keeps both",
    )


@functools.cache
def _after_selmix() -> Classifier:
    data, _ = make_data()
    with tempfile.TemporaryDirectory() as folder:
        return fit(subject("selmix").make(data), data, Path(folder)).algorithm.export()


def starts(subject_: Subject, folder: Path) -> None:
    """It starts where selmix ended; selmix and supervised start where it ended."""
    data, _ = make_data()
    mine = fit(subject_.make(data), data, folder / "first").algorithm.export()
    pairs = {
        "selmix after it": (mine, subject("selmix")),
        "supervised after it": (mine, subject("supervised")),
        "it after selmix": (_after_selmix(), subject_),
    }
    x = next(data.test_batches())
    for words, (net, second) in pairs.items():
        net = copy.deepcopy(net).requires_grad_(True)
        with torch.no_grad():
            handed_on = net.eval()(x)
        stage = data.at_stage("2-test")
        fitted = fit(second.make(stage, net.train()), stage, folder / words.replace(" ", "-"))
        with torch.no_grad():
            found = fitted.algorithm.eval().predict(x)
        demand(
            found.shape == handed_on.shape and found.isfinite().all(),
            f"{words}: predictions must be finite and {tuple(handed_on.shape)}, not "
            f"{_shown(found)}",
        )


def state(subject: Subject, folder: Path) -> None:
    """state_dict brings back predictions, losses and gradients of the next step."""
    data, _ = make_data()
    old = subject.make(data, keep="last")
    fit(old, data, folder)
    new = subject.make(data, make_net(data, seed=7), keep="last")
    demand(digest(new) != digest(old), "training leaves every parameter and buffer as it was")
    new.load_state_dict(old.state_dict())
    x = next(data.test_batches())
    remedy = "state belongs into register_buffer, with a shape that does not change"
    with torch.no_grad():
        same = torch.equal(new.eval().predict(x), old.eval().predict(x))
    demand(same, f"after load_state_dict the predictions differ; {remedy}")
    ctx = Context(2, 4, subject.make(data).requires_grad_(False))
    found = []
    for algorithm in (old, new):
        batch = next(algorithm.train().batches(data, 2))
        losses = backward(algorithm, batch, ctx)
        found.append((losses, [p.grad for p in algorithm.parameters()]))
    (losses, gradients), (again, gradients_again) = found
    demand(
        checkpoint.digest(losses) == checkpoint.digest(again),
        f"after load_state_dict the next step has other losses; {remedy}",
    )
    demand(
        checkpoint.digest(gradients) == checkpoint.digest(gradients_again),
        f"after load_state_dict the next step has other gradients; {remedy}",
    )


def resume(subject: Subject, folder: Path) -> None:
    """Killed at any step and resumed, it ends bit for bit like an undisturbed run."""
    data, _ = make_data()
    # Ten steps are the least that SelMix trains between two validations.
    averaged: dict[str, Any] = {"steps": 12, "evaluate_every": 10}
    plain: dict[str, Any] = {"steps": 24, "evaluate_every": 10, "ema": 0.0}
    clock = subject.make(data, **averaged).clock
    anew = [step for step in range(1, 12) if clock(step)[0] == 0][:1]
    around = {moment for step in anew for moment in (step, step + 1)}  # before and after a restart
    _demand_resumable(subject, data, folder / "averaged", averaged, {1, 11} | around)
    _demand_resumable(subject, data, folder / "plain", plain, {12, 23})


def _demand_resumable(
    subject: Subject, data: Data, folder: Path, options: dict[str, Any], moments: set[int]
) -> None:
    """Compare a run with those that go on from what a kill at these steps would have left."""
    algorithm = subject.make(data, **options)
    after_step = algorithm.after_step

    def leave(ctx: Context) -> None:
        after_step(ctx)
        if ctx.step in moments:
            shutil.copytree(folder / "whole", folder / f"{ctx.step}")

    algorithm.after_step = leave  # type: ignore[method-assign]
    whole = fit(algorithm, data, folder / "whole")
    expected = saved(folder / "whole")
    for moment in sorted(moments):
        torch.manual_seed(1234)  # whatever state the new process starts in
        cut = folder / f"{moment}"
        resumed = fit(subject.make(data, **options), data, cut, resume=True)
        demand(
            saved(cut) == expected
            and digest(resumed.algorithm) == digest(whole.algorithm)
            and resumed.step == whole.step,
            f"a run killed after step {moment} of {options['steps']} and resumed ends with other "
            "weights; keep all state in buffers (no attribute, no list), and take random numbers "
            "from torch's global generator, which the engine seeds at every step",
        )


def best(subject: Subject, folder: Path) -> None:
    """The best weights are those that were measured."""
    data, _ = make_data()
    options: dict[str, Any] = {"steps": 15, "evaluate_every": 5, "select": "accuracy"}
    for lr in (0.01, 1.0):
        algorithm = subject.make(data, **options, lr=lr)
        on_validation, measured = algorithm.on_validation, dict[int, str]()

        def record(evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
            measured[ctx.step] = checkpoint.digest(evaluation.logits)  # noqa: B023
            # The best are those after about two thirds of the steps, however good they are.
            value = torch.tensor(-abs(ctx.step - 10.0))
            return on_validation(evaluation, ctx) | {"accuracy": value}  # noqa: B023

        algorithm.on_validation = record  # type: ignore[method-assign]
        try:
            fitted = fit(algorithm, data, folder / str(lr))
        except engine.NonFiniteLoss:
            if lr < 1:
                raise
            continue  # a method may diverge at such a rate
        kept = checkpoint.load(folder / str(lr) / "best.pt")
        loaded = subject.make(data, **options)
        loaded.load_state_dict(kept["teacher"])
        for found in (loaded, fitted.algorithm):
            again = checkpoint.digest(engine.evaluate(found, data).logits)
            demand(
                again == measured[kept["step"]] and fitted.step == kept["step"],
                f"the best weights, those of step {kept['step']}, predict something else than when "
                "they were measured; predictions may depend on parameters and buffers only",
            )


def pool_labels(subject: Subject, folder: Path) -> None:
    """True labels of the unlabeled pool reach no weight."""
    honest, diagnostics = make_data()
    poisoned, _ = make_data(pool_labels=0)
    unknown, _ = make_data(pool_labels=-1)
    garbage = Diagnostics(torch.full_like(diagnostics.labels, 2))
    fit(subject.make(honest), honest, folder / "honest", diagnostics=diagnostics)
    expected = saved(folder / "honest")
    # What only reports may see is poisoned as well as what the data set said.
    for key, data, labels in (("poisoned", poisoned, garbage), ("unknown", unknown, None)):
        fit(subject.make(data), data, folder / key, diagnostics=labels)
        demand(
            saved(folder / key) == expected,
            f"with {key} labels of the pool the weights differ; nothing may depend on those "
            "labels, nor on random numbers that torch's global generator did not give",
        )


def missing_in_batch(subject: Subject, folder: Path) -> None:
    """A class may be missing from the batch."""
    for num_classes in (2, 3):
        data, _ = make_data(num_classes)
        algorithm, ctx = subject.started(data)
        batch = next(algorithm.batches(data, 0))
        batch = dataclasses.replace(batch, y=torch.zeros_like(batch.y))
        remedy = "a mean over no image is NaN: divide by counts.clamp_min(1)"
        for key, loss in backward(algorithm, batch, ctx).items():
            demand(loss.isfinite(), f"the loss {key!r} is not finite if all are class 0; {remedy}")
        for key, parameter in algorithm.named_parameters():
            if parameter.grad is not None:
                finite = parameter.grad.isfinite().all()
                demand(finite, f"the gradient of {key} is not finite; {remedy}")


def missing_in_labeled(subject: Subject, folder: Path) -> None:
    """A class may have no labeled image at all."""
    for missing in (0, 2):
        data, _ = make_data()
        kept = data.labels != missing
        data = dataclasses.replace(data, labeled=data.labeled[kept], labels=data.labels[kept])
        assert data.task.labeled_counts[missing] == 0
        algorithm = subject.make(data)
        fitted = fit(algorithm, data, folder / str(missing))
        for trained in (algorithm, fitted.algorithm):
            demand_finite(trained, f"if class {missing} has no labeled image")


def no_pseudo_labels(subject: Subject, folder: Path) -> None:
    """Classes may be without pseudo-labels."""
    for num_classes in (2, 3):
        data, _ = make_data(num_classes)
        net = make_net(data)
        with torch.no_grad():
            net.classifier.bias[0] = 50  # every image is taken for class 0, with certainty
        algorithm = subject.make(data, net)
        fitted = fit(algorithm, data, folder / str(num_classes))
        for trained in (algorithm, fitted.algorithm):
            demand_finite(trained, "if every image is taken for class 0")


def config_refuses(subject: Subject, folder: Path) -> None:
    """The configuration refuses values without meaning."""
    wrong: dict[str, Any] = {"steps": 0, "batch": 0, "mu": 0, "lr": 0.0, "momentum": 1.0}
    wrong |= {"weight_decay": -1.0, "schedule": "linear", "ema": 1.0, "ema_buffers": "no"}
    wrong |= {"evaluate_every": 0, "keep": "first"}
    for field, value in wrong.items():
        message = _refusal(functools.partial(subject.kind.Config, **{field: value}))
        demand(
            message.startswith(f"{field} must be ") and ", not " in message,
            f"Config({field}={value!r}) must be refused with a ValueError '{field} must be ..., "
            f"not {value!r}'; derive Config from Algorithm.Config, and let a __post_init__ of "
            "your own call super().__post_init__()",
        )


def config_nan(subject: Subject, folder: Path) -> None:
    """No number of the configuration may be NaN."""
    data, _ = make_data()
    for f in dataclasses.fields(subject.kind.Config):
        if "float" in str(f.type) and "list" not in str(f.type):
            build = functools.partial(subject.make, data, None, **{f.name: math.nan})
            demand(
                f.name in _refusal(build),
                f"{f.name} may be NaN; add a line to RULES, such as "
                f'RULES: ClassVar[Rules] = {{"{f.name}": ">= 0"}}',
            )


def _refusal(build: Callable[[], object]) -> str:
    try:
        build()
    except ValueError as error:
        return str(error)
    return ""


def config_yaml(subject: Subject, folder: Path) -> None:
    """The configuration survives YAML."""
    kind = subject.kind.Config
    remedy = (
        "fields are numbers, words, lists or None, with @dataclass on the class and a type at each"
    )
    try:
        objects, plain = config.compose({subject.name: kind}, [])
        again, _ = config.compose({subject.name: kind}, [("file", config.flatten(plain))])
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise Broken(f"Config cannot be written to config.yaml ({reason}); {remedy}") from error
    same = objects[subject.name] == kind() and again == objects
    demand(same, f"Config changes on its way through config.yaml; {remedy}")


def listing(subject: Subject, folder: Path) -> None:
    """The listing has a line for it."""
    line = plugins.available("algorithm").get(subject.name)
    if line is None or not subject.kind.__module__.startswith("ssl_selmix.algorithms."):
        raise Skipped("the listing shows the shipped algorithms")
    demand(
        line.endswith(".") and len(line) < 110,
        "the first line of the file's docstring must be one sentence of less than 110 characters, "
        f"not {line!r}",
    )


def _shown(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    what = "finite" if bool(value.isfinite().all()) else "not finite"
    return f"{tuple(value.shape)} {what}{', with gradient' if value.requires_grad else ''}"


Check = Callable[[Subject, Path], None]
CHECKS: tuple[Check, ...] = (
    gradients,
    logs,
    optimizer_groups,
    frozen,
    on_validation,
    views,
    forwards,
    batches,
    teacher,
    evaluation,
    export,
    starts,
    state,
    resume,
    best,
    pool_labels,
    missing_in_batch,
    missing_in_labeled,
    no_pseudo_labels,
    config_refuses,
    config_nan,
    config_yaml,
    listing,
)


# Running them one after the other.


@dataclass(frozen=True)
class Outcome:
    """What became of a check: passed, failed or skipped, the reason, and the traceback."""

    title: str
    verdict: str
    reason: str = ""
    trace: str = ""


def outcomes(subject: Subject) -> Iterator[Outcome]:
    """Every check on one algorithm, each in a folder of its own."""
    for check in CHECKS:
        title = (inspect.getdoc(check) or check.__name__).partition("\n")[0].rstrip(".")
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(subject, Path(folder))
            except Skipped as reason:
                yield Outcome(title, "skipped", str(reason))
            except Broken as error:
                yield Outcome(title, "failed", str(error), traceback.format_exc())
            except Exception as error:
                yield Outcome(
                    title,
                    "failed",
                    plugins.blame(error, inspect.getfile(subject.kind)),
                    traceback.format_exc(),
                )
            else:
                yield Outcome(title, "passed")


def report(name: str, debug: bool = False) -> bool:
    """Print a line for each check and a summary; True if none failed.

    Raises:
        ValueError: there is no such algorithm, or its file cannot be imported.
    """
    since = time.perf_counter()
    found = subject(name)
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    for outcome in outcomes(found):
        counts[outcome.verdict] += 1
        reason = f": {outcome.reason}" if outcome.reason else ""
        print(f"{outcome.verdict:7}  {outcome.title}{reason}", flush=True)
        if debug and outcome.trace:
            print(outcome.trace)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    print(f"{found.name} ({found.kind.__name__}): {summary}, {time.perf_counter() - since:.1f} s")
    return not counts["failed"]
