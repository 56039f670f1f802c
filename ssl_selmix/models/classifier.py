"""A network in two parts: a body that makes features, and a linear classifier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssl_selmix.common.processes import World


class Classifier(nn.Module):
    """`features` N×C×H×W -> N×D, and a linear `classifier` D -> K on top.

    With `autocast` set to a dtype the backbone computes in it; features, logits and losses are
    float32 all the same.
    """

    autocast: torch.dtype | None = None
    step: str = "joint"  # how a training step looks at its views: joint, split or lazy (forward.py)
    runner: Callable[[Tensor], Tensor] | None = None  # the backbone as it trains: compiled, say
    world: World | None = None  # processes that share every batch
    rebuild: Callable[[], Classifier] | None = None  # makes the network anew, untrained

    def __init__(self, backbone: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def features(self, x: Tensor) -> Tensor:
        """Features N×D of normalised images N×C×H×W."""
        if self.world is None:
            return self.share_features(x)
        return self.world.gather(self.share_features(self.world.own(x)), len(x))

    def share_features(self, x: Tensor) -> Tensor:
        """Features of images that are this process's share of a batch."""
        body = self.runner if self.runner is not None and self.training else self.backbone
        if self.autocast is None:
            return body(x)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, self.autocast):
            features: Tensor = body(x)
        return features.float()

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×K."""
        return self.classifier(self.features(x))  # type: ignore[no-any-return]

    def begin_anew(self) -> None:
        """Random weights from the global generator, as the network was built.

        Raises:
            ValueError: the network was put together by hand.
        """
        if self.rebuild is None:
            raise ValueError(
                "this network cannot be made anew; build it with models.build, or set its "
                "`rebuild` to a function that returns an untrained one"
            )
        self.load_state_dict(self.rebuild().state_dict())


def num_parameters(module: nn.Module) -> int:
    """Number of trainable and frozen parameters."""
    return sum(p.numel() for p in module.parameters())
