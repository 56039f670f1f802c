"""Checks at the limits: missing classes, no pseudo-labels, poisoned labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from ssl_selmix.contract.subjects import (
    Subject,
    backward,
    demand,
    demand_finite,
    demand_steps,
    fit,
    make_data,
    make_net,
    saved,
)
from ssl_selmix.data import Diagnostics


def check_pool_labels(subject: Subject, folder: Path) -> None:
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


def check_missing_in_batch(subject: Subject, folder: Path) -> None:
    """A class may be missing from the batch."""
    demand_steps(subject.kind)
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


def check_missing_in_labeled(subject: Subject, folder: Path) -> None:
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


def check_no_pseudo_labels(subject: Subject, folder: Path) -> None:
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
