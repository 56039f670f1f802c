"""Checks of a training: teacher, evaluation, export, checkpoints, resume."""

from __future__ import annotations

import copy
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_selmix.algorithm import Context, Evaluation
from ssl_selmix.contract.settings import _shown
from ssl_selmix.contract.subjects import (
    Skipped,
    Subject,
    backward,
    demand,
    demand_steps,
    digest,
    fit,
    make_data,
    make_net,
    saved,
    subject,
)
from ssl_selmix.data import Data
from ssl_selmix.metrics import NAMES
from ssl_selmix.models import Classifier, batch_norm
from ssl_selmix.models.execution import Execution
from ssl_selmix.training import checkpoint, engine
from ssl_selmix.training.log import SilentLog


def check_on_validation(subject: Subject, folder: Path) -> None:
    """What `on_validation` returns is detached, finite, and of a shape that can be logged."""
    data, _ = make_data()
    algorithm, ctx = subject.started(data)
    evaluation = engine.evaluate_for(algorithm, algorithm, data, 0)
    log = SilentLog(keep=True)
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


def check_teacher(subject: Subject, folder: Path) -> None:
    """A step does not touch the teacher."""
    demand_steps(subject.kind)
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


def check_evaluation(subject: Subject, folder: Path) -> None:
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


def check_export(subject: Subject, folder: Path) -> None:
    """What `export` returns predicts what `predict` predicts, and is a network of its own."""
    data, _ = make_data()
    net = make_net(data)
    expected_momenta = [module.momentum for module in batch_norm.batch_norms(net)]
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
        [module.momentum for module in batch_norm.batch_norms(exported)] == expected_momenta,
        "batch norms come back with another momentum; restore it in `export`",
    )
    fitted.net.prepared(Execution("bf16"))
    demand(
        exported.rebuild is not None and fitted.export().execution.precision == "bf16",
        "the exported network lacks `rebuild` or `execution`; begin with super().export(), which "
        "keeps both",
    )


@functools.cache
def _after_selmix() -> Classifier:
    data, _ = make_data()
    with tempfile.TemporaryDirectory() as folder:
        return fit(subject("selmix").make(data), data, Path(folder)).algorithm.export()


def check_starts(subject_: Subject, folder: Path) -> None:
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


def check_origin(subject: Subject, folder: Path) -> None:
    """What the stage before began with stays as it is, and another one gives another network."""
    if not subject.kind.needs_origin:
        raise Skipped("it needs no network but the one it starts from")
    data, _ = make_data()
    found = []
    for seed in (4, 5):
        origin = make_net(data, seed)
        before = digest(origin)
        fitted = fit(subject.make(data), data, folder / str(seed), origin=origin)
        demand(digest(origin) == before, "ctx.origin was changed; work on a copy of it")
        found.append(digest(fitted.algorithm.export()))
    demand(
        found[0] != found[1],
        "whatever ctx.origin is, the same network is handed on; leave out needs_origin",
    )


def check_state(subject: Subject, folder: Path) -> None:
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
    if not subject.kind.trains:
        return
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


def check_resume(subject: Subject, folder: Path) -> None:
    """Killed or asked to end at any step, it ends bit for bit like an undisturbed run.

    Resumed from the checkpoint of the last validation, and from one that was saved after any step.
    """
    data, _ = make_data()
    if not subject.kind.trains:
        _demand_settled(subject, data, folder)
        return
    # Ten steps are the least that SelMix trains between two validations.
    averaged: dict[str, Any] = {"steps": 12, "evaluate_every": 10}
    plain: dict[str, Any] = {"steps": 24, "evaluate_every": 10, "ema": 0.0}
    clock = subject.make(data, **averaged).clock
    anew = [step for step in range(1, 12) if clock(step)[0] == 0][:1]
    around = {moment for step in anew for moment in (step, step + 1)}  # before and after a restart
    _demand_resumable(subject, data, folder / "averaged", averaged, {1, 11} | around, {6})
    _demand_resumable(subject, data, folder / "plain", plain, {12}, {23})


def _demand_settled(subject: Subject, data: Data, folder: Path) -> None:
    """Resume a stage without steps when it has ended: it must not do its work a second time."""
    whole = fit(subject.make(data), data, folder)
    expected = saved(folder)
    torch.manual_seed(1234)
    again = fit(subject.make(data), data, folder, resume=True)
    demand(
        saved(folder) == expected and digest(again.algorithm) == digest(whole.algorithm),
        "resumed after its end, the stage has other weights; keep all state in buffers",
    )


def _demand_resumable(
    subject: Subject,
    data: Data,
    folder: Path,
    options: dict[str, Any],
    after_validations: set[int],
    after_steps: set[int],
) -> None:
    """Compare a run with those that go on from what a kill at these steps would have left.

    Either what the last validation saved, or what was saved after the step before; the latter also
    in the middle of a validation.
    """
    algorithm = subject.make(data, **options)
    after_step, on_validation = algorithm.after_step, algorithm.on_validation
    cuts: dict[int, Path] = {}

    def leave(step: int, between: bool) -> None:
        cuts[step] = folder / f"{step}"
        shutil.copytree(folder / "whole", cuts[step])
        if not between:
            (cuts[step] / checkpoint.BETWEEN).unlink(missing_ok=True)

    def leave_after_step(ctx: Context) -> None:
        after_step(ctx)
        if ctx.step in after_validations | after_steps:
            leave(ctx.step, ctx.step in after_steps)

    def leave_at_validation(evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        if ctx.step in (10, options["steps"]) and ctx.step not in cuts:
            leave(ctx.step, True)
        return on_validation(evaluation, ctx)

    algorithm.after_step = leave_after_step  # type: ignore[method-assign]
    algorithm.on_validation = leave_at_validation  # type: ignore[method-assign]
    after_every_step = engine.Pauses(minutes=1e-9)
    whole = fit(algorithm, data, folder / "whole", pauses=after_every_step)
    expected = saved(folder / "whole")
    for moment, cut in sorted(cuts.items()):
        torch.manual_seed(1234)  # whatever state the new process starts in
        resumed = fit(subject.make(data, **options), data, cut, resume=True)
        demand(
            saved(cut) == expected
            and digest(resumed.algorithm) == digest(whole.algorithm)
            and resumed.step == whole.step,
            f"a run killed after step {moment} of {options['steps']} and resumed ends with other "
            "weights; keep all state in buffers (no attribute, no list), and take random numbers "
            "from torch's global generator, which the engine seeds at every step",
        )


def check_best(subject: Subject, folder: Path) -> None:
    """The best weights are those that were measured."""
    demand_steps(subject.kind)
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
