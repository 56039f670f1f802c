"""How the network sees the views of one batch: one decision for every FixMatch-like method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_selmix.algorithm import Batch
from ssl_selmix.models import Classifier


def together(net: Classifier, images: Sequence[Tensor]) -> list[Tensor]:
    """Features of several batches of images from one forward pass, which shares statistics."""
    x = torch.cat(list(images)).contiguous(memory_format=torch.channels_last)
    return list(net.features(x).split([len(part) for part in images]))


def joint_features(net: Classifier, batch: Batch) -> list[Tensor]:
    """Features of the labeled view and of every unlabeled view, from one forward pass.

    All views share batch statistics, as in the published code; a view's features follow in the
    order of `Algorithm.views`.

    Shape: B×D, then M×D for every view.
    """
    return together(net, [batch.x, *(batch.u[view] for view in range(len(batch.u)))])


def joint_logits(net: Classifier, batch: Batch) -> list[Tensor]:
    """Logits of the network's own classifier for the same views; B×K, then M×K."""
    features = joint_features(net, batch)
    logits: Tensor = net.classifier(torch.cat(features))
    return list(logits.split([len(f) for f in features]))
