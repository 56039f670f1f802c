"""Checks of one step: losses, gradients, logs, views, batches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ssl_selmix.algorithm import Algorithm
from ssl_selmix.contract.settings import _shown
from ssl_selmix.contract.subjects import (
    Recorder,
    Skipped,
    Subject,
    backward,
    demand,
    demand_steps,
    fit,
    make_data,
    take_step,
)
from ssl_selmix.data import Data
from ssl_selmix.methods.views import Look
from ssl_selmix.models import batch_norm
from ssl_selmix.models.execution import Execution
from ssl_selmix.training import checkpoint


def check_gradients(subject: Subject, folder: Path) -> None:
    """Losses are finite scalars, and every trained parameter gets a gradient."""
    demand_steps(subject.kind)
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


def check_logs(subject: Subject, folder: Path) -> None:
    """Logs are detached, finite scalars under names of their own."""
    demand_steps(subject.kind)
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


def check_optimizer_groups(subject: Subject, folder: Path) -> None:
    """The optimizer gets every trained parameter once, and no frozen one."""
    demand_steps(subject.kind)
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


def check_curriculum(subject: Subject, folder: Path) -> None:
    """The number of unlabeled images rises from `mu_from` to `mu`, or `mu_from` is refused."""
    demand_steps(subject.kind)
    if not issubclass(subject.kind.Config, Algorithm.PoolConfig):
        raise Skipped("draws no unlabeled images")
    data, _ = make_data()
    try:
        algorithm, ctx = subject.started(data, mu=7, mu_from=1)
    except ValueError as error:
        demand(
            "mu_from" in str(error),
            f"mu=7 with mu_from=1 is refused, but not for what it is ({error}); set "
            "follows_curriculum = False, if batches draws the same number in every step",
        )
        return
    last, cfg = algorithm.config.steps - 1, algorithm.config
    assert isinstance(cfg, Algorithm.PoolConfig)
    for step in (0, last):
        now, length = algorithm.clock(step)
        batch, wanted = next(algorithm.batches(data, step)), cfg.batch * cfg.mu_at(now / length)
        demand(
            len(batch.index_u) == wanted,
            f"step {step} has {len(batch.index_u)} unlabeled images and mu_from=1 asks for "
            f"{wanted}; call super().batches, or set follows_curriculum = False",
        )
        backward(algorithm, batch, ctx)


def check_frozen(subject: Subject, folder: Path) -> None:
    """Frozen parameters of the network stay, and some trained parameter moves."""
    demand_steps(subject.kind)
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


def check_views(subject: Subject, folder: Path) -> None:
    """A step asks for declared views only and leaves its inputs as they are."""
    demand_steps(subject.kind)
    data, _ = make_data()
    algorithm, ctx = subject.started(data)
    names = tuple(algorithm.views)
    demand(set(names) <= {"weak", "strong"}, f"a view is weak or strong, but views is {names}")
    everything = torch.cat([data.labeled, data.unlabeled, data.validation])
    images = data.take(everything)
    batch = next(algorithm.batches(data, 0))
    demand(
        len(batch.u) == len(names),
        f"batches makes {len(batch.u)} views and `views` declares {len(names)}; pass self.views on",
    )
    recorder = Recorder(batch.u)
    before = [t.clone() for t in (batch.x, *batch.more_x, batch.y, batch.index_u)]
    made = [batch.u[view].clone() for view in range(len(batch.u))]
    rows = torch.tensor([1, 0])
    for view, whole in enumerate(made):
        same = torch.equal(batch.u.select(view, rows), whole[rows])
        demand(same, f"u.select({view}, rows) must be u[{view}][rows]")
    backward(algorithm, dataclasses.replace(batch, u=recorder), ctx)
    undeclared = recorder.asked - set(range(len(names)))
    demand(not undeclared, f"forward asks for view {undeclared}, and `views` is {names}")
    views = (batch.u[view] for view in range(len(batch.u)))
    after = [batch.x, *batch.more_x, batch.y, batch.index_u, *views]
    kept = [torch.equal(a, b) for a, b in zip([*before, *made], after, strict=True)]
    demand(
        all(kept) and torch.equal(data.take(everything), images),
        "forward changes its batch; work on copies, not in place",
    )


def check_forwards(subject: Subject, folder: Path) -> None:
    """Joint, split and lazy steps give the same losses and gradients, but for batch statistics."""
    demand_steps(subject.kind)
    needed: list[Tensor] = []
    original = Look.rest

    def rest(look: Look, rows: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        needed.extend([] if rows is None else [rows])
        return original(look, rows)

    with mock.patch.object(Look, "rest", rest):
        for case, scale in itertools.product(subject.kind.contract_cases, (10.0, 100.0)):
            _same_steps(subject, case, scale)
    lazy = "lazy" in subject.kind.forwards
    some = [0 < int(rows.sum()) < len(rows) for rows in needed]
    demand(
        not lazy or any(some) or (needed and all(bool(rows.all()) for rows in needed)),
        '`forwards` has "lazy", and no step asked Look.rest for some of the images only; pass it '
        "which of them count",
    )


def _same_steps(subject: Subject, settings: Mapping[str, Any], scale: float) -> None:
    data, _ = make_data()
    found = {}
    for how in ("joint", "split", "lazy"):
        algorithm, ctx = subject.started(data, **settings)
        algorithm.net.prepared(Execution(views=how))
        with torch.no_grad():
            algorithm.net.classifier.weight.mul_(scale)  # surer, and not of all images alike
        for module in batch_norm.batch_norms(algorithm.net):
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
        demand(same, f"views.{how}=true changes losses or gradients; {remedy}")


def check_pseudo_labels(subject: Subject, folder: Path) -> None:
    """With pseudo_labels=teacher the averaged model sees the weak views, and the student none."""
    if not any(f.name == "pseudo_labels" for f in dataclasses.fields(subject.kind.Config)):
        raise Skipped("it has no setting pseudo_labels")
    data, _ = make_data()
    algorithm, ctx = subject.started(data, pseudo_labels="teacher")
    batch = next(algorithm.batches(data, 0))
    passed: list[int] = []
    guided: list[bool] = []

    def of_student(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        passed.append(len(given[0]))

    def of_teacher(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        same = torch.equal(given[0], batch.u[0])
        guided.append(same and not (module.training or torch.is_grad_enabled()))

    algorithm.net.backbone.register_forward_pre_hook(of_student)
    ctx.teacher.net.backbone.register_forward_pre_hook(of_teacher)
    take_step(algorithm, batch, ctx)
    remedy = (
        "give Look the guide, as in Look(self.net, batch, guide(self, ctx)), and ask the heads of "
        "guesser(self, ctx); both are in ssl_selmix.methods.views"
    )
    num_unlabeled = len(batch.index_u) * (len(batch.u) - 1)
    few = sum(passed) <= len(batch.x) * (1 + len(batch.more_x)) + num_unlabeled
    demand(
        any(guided) and few,
        f"pseudo_labels=teacher changes nothing in the weak views' pass; {remedy}",
    )


def check_batches(subject: Subject, folder: Path) -> None:
    """A batch depends on seed, stage and step alone."""
    demand_steps(subject.kind)
    data, _ = make_data()

    def contents(data: Data, start: int, skip: int = 0) -> str:
        algorithm, _ = subject.started(data)
        batch = next(itertools.islice(algorithm.batches(data, start), skip, None))
        views = [batch.u[view] for view in range(len(batch.u))]
        return checkpoint.digest([batch.x, *batch.more_x, batch.y, batch.index_u, *views])

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
