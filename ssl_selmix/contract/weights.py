"""What is demanded of a method that promises to weigh its labeled images."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix.contract.subjects import (
    Skipped,
    Subject,
    demand,
    demand_steps,
    make_data,
    take_step,
)

TOLERANCE = 1e-4  # relative, of a loss


def check_weights(subject: Subject, folder: Path) -> None:
    """Losses are linear in weights of labeled images and shares of classes, and 1 means nothing."""
    demand_steps(subject.kind)
    if not getattr(subject.kind.forward, "weighs_labels", False):
        raise Skipped("it does not promise to weigh images (@weighs_labels on forward)")
    data, _ = make_data()
    algorithm, ctx = subject.started(data)
    batch = next(algorithm.batches(data, 0))
    state = copy.deepcopy(algorithm.state_dict())
    ones = F.one_hot(batch.y, algorithm.task.num_classes).float()

    def loss(masses: Tensor | None) -> Tensor:
        algorithm.load_state_dict(state)
        losses, _ = take_step(algorithm, dataclasses.replace(batch, masses=masses), ctx)
        return torch.stack(list(losses.values())).sum().detach()

    plain, whole = loss(None), loss(ones)
    demand(
        _close(plain, whole),
        f"the loss is {float(whole)} with weights of 1, and {float(plain)} without weights; take "
        "the labeled loss of batch.target",
    )
    weights = torch.ones(len(ones))
    found = []
    for weights[0] in (0.0, 2.0):
        found.append(loss(weights[:, None] * ones))
    demand(
        _close(torch.stack(found).mean(), whole),
        "the loss is not linear in the weight of a labeled image; multiply the loss of each image "
        "with its weight, and divide by nothing that depends on weights",
    )
    others = ones.roll(1, dims=1)
    demand(
        _close(loss((ones + others) / 2), (whole + loss(others)) / 2),
        "the loss of an image that half of its annotators say is of another class is not the mean "
        "of the losses of both classes; take the labeled loss of batch.target",
    )
    demand(
        not _close(loss(0 * ones), whole),
        "weights of labeled images change no loss; take the labeled loss of batch.target",
    )


def _close(one: Tensor, other: Tensor) -> bool:
    return bool(torch.isclose(one, other, rtol=TOLERANCE, atol=1e-6))
