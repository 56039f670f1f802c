"""LWS: a learned scale for every class of a frozen network, classes drawn equally often."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.data.batch import Task
from ssl_selmix.methods import labeled
from ssl_selmix.models import Classifier
from ssl_selmix.selmix.fine_tuning import FrozenBody


class LearnableWeightScaling(FrozenBody):
    """Kang et al., ICLR 2020: w~_k = f_k w_k.

    The scale multiplies the bias too, as in the authors' code: a logit becomes f_k z_k. It is not
    decayed, for decay would pull it to 0; their code does.
    """

    head_name = "scaled classifier"

    def __init__(self, net: Classifier, task: Task, config: FrozenBody.Config) -> None:
        super().__init__(net, task, config)
        net.classifier.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(task.num_classes))  # f

    def head(self, features: Tensor) -> Tensor:
        """f_k (w_k . h + b_k), as one linear layer. Shape: N×D -> N×K."""
        return F.linear(features, *self.scaled())

    def scaled(self) -> tuple[Tensor, Tensor | None]:
        """Weight K×D and bias (K,) or None of the scaled classifier."""
        head = self.net.classifier
        bias = None if head.bias is None else self.scale * head.bias
        return self.scale[:, None] * head.weight, bias

    def export(self) -> Classifier:
        """The network with the scale in its classifier."""
        return labeled.with_classifier(super().export(), *self.scaled())
