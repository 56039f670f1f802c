"""Less what the network says of an image without content, in the classifier's bias; no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssl_selmix.algorithm import Algorithm, Context, Evaluation
from ssl_selmix.methods import reference

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_selmix.data.batch import Task
    from ssl_selmix.models import Classifier


class Debias(Algorithm):
    """The test-time half of CDMAD (Lee & Kim, CVPR 2024), for any trained network.

    It needs neither labels nor validation images: they only show what it does.
    """

    trains = False
    views: Sequence[str] = ()

    @dataclass
    class Config(Algorithm.FixedConfig, reference.Config):
        """Which image has no content."""

    config: Config

    @classmethod
    def needs_pixels(cls, config: Algorithm.Config) -> str:
        """For the image without content."""
        return reference.WHY_PIXELS

    def __init__(self, net: Classifier, task: Task, config: Config) -> None:
        super().__init__(net, task, config)
        self.reference = reference.Reference(task, config)
        self.reference.prepare(net)
        net.requires_grad_(False)

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """Take the bias from the image without content; what was added to the logits, (K,)."""
        bias = self.net.classifier.bias
        before = bias.clone()
        self.reference.into(self.net)
        return {"offsets": (bias - before).detach().double()}
