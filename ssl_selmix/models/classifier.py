"""A network in two parts: a body that makes features, and a linear classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ssl_selmix.models.batch_norm import batch_norms
from ssl_selmix.models.execution import Execution, placed

if TYPE_CHECKING:
    from typing_extensions import Self


SMALLEST = 1e-12  # gain that is told from 0


class Classifier(nn.Module):
    """`features` N×C×H×W -> N×D, and a linear `classifier` D -> K on top.

    `execution` says how it computes. A copy computes in the same way, and is not compiled.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Linear,
        *,
        rebuild: Callable[[], Classifier] | None = None,
        to_size: nn.Module | None = None,
        neck: nn.Module | None = None,
    ) -> None:
        """With `rebuild`, which returns an untrained network, this one can begin anew.

        `to_size` brings images to what the body takes; it has no tensors. `neck` is what lies
        between the body and the classifier, and makes the features.
        """
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.to_size = to_size
        self.neck = neck
        self.rebuild = rebuild
        self.execution = Execution()
        self.frozen = ""  # body: stays in evaluation mode; norms: its batch norms do
        self.layer_decay = 1.0  # of the rate, from the classifier down to the first layer
        self.adapted = False  # the body has low-rank updates beside its weights

    def train(self, mode: bool = True) -> Self:
        """Train mode in which what `frozen` names stays in evaluation mode."""
        super().train(mode)
        if self.frozen == "body":
            self.backbone.eval()
        elif self.frozen == "norms":
            for module in batch_norms(self.backbone):
                module.eval()
        return self

    @property
    def body(self) -> nn.Module:
        """All that makes features: the backbone, and the neck if there is one."""
        return self.backbone if self.neck is None else nn.Sequential(self.backbone, self.neck)

    def prepared(self, execution: Execution, device: torch.device | None = None) -> Self:
        """The network itself, which computes in this way; channels last, on the device if named."""
        self.execution = execution
        return placed(self, device)

    @contextmanager
    def trained_by(self, runner: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
        """Let the runner, if there is one, take the place of the body in training mode."""
        before = self.execution
        self.execution = replace(before, runner=runner)
        try:
            yield
        finally:
            self.execution = before

    def features(self, x: Tensor) -> Tensor:
        """Features N×D of normalised images N×C×H×W."""
        world = self.execution.world
        if world is None:
            return self.share_features(x)
        return world.gather(self.share_features(world.own(x)), len(x))

    def share_features(self, x: Tensor) -> Tensor:
        """Features n×D of images n×C×H×W that are this process's share of a batch."""
        runner = self.execution.runner
        return self._passed(runner if runner is not None and self.training else self.body, x)

    def embed(self, x: Tensor) -> Tensor:
        """What the backbone alone makes of images n×C×H×W, n×D: features before the neck."""
        return self._passed(self.backbone, x)

    def _passed(self, body: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        how = self.execution
        if self.to_size is not None:
            x = self.to_size(x)
        if how.dtype is None:
            return body(x)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, how.dtype):
            features: Tensor = body(x)
        return features.float()

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×K."""
        return self.classifier(self.features(x))  # type: ignore[no-any-return]

    def begin_anew(self) -> None:
        """Random weights from the global generator, as the network was built; what is frozen stays.

        Raises:
            ValueError: the network was put together without `rebuild`.
        """
        if self.rebuild is None:
            raise ValueError(
                "this network cannot be made anew; build it with models.build, or give "
                "Classifier(..., rebuild=) a function that returns an untrained one"
            )
        fresh = self.rebuild().state_dict()
        if self.frozen:
            kept = {name for name, p in self.named_parameters() if p.requires_grad}
            fresh = {k: fresh[k] if k in kept else v for k, v in self.state_dict().items()}
        self.load_state_dict(fresh)


class Decided(nn.Linear):
    """A linear classifier followed by a decision rule that no bias can hold.

    Its output is the logarithm of the expected gain of each class, log(softmax(z / T) W): the
    arg-max is the decision, the softmax is the share of the gain. W = I and T = 1 change nothing
    but the scale. The tensors of the linear layer keep their names.
    """

    gain: Tensor  # W, K×K > 0: of saying j if the class is i
    temperature: Tensor  # T

    def __init__(self, linear: nn.Linear) -> None:
        """Take the place of the layer, whose parameters it shares."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("gain", torch.eye(linear.out_features).to(linear.weight))
        self.register_buffer("temperature", torch.ones(()).to(linear.weight))
        self.decide(self.gain, 1.0)

    @torch.no_grad()
    def decide(self, gain: Tensor, temperature: float) -> None:
        """Set W, of which a constant for each row means nothing, and T."""
        gain = gain - gain.min(1, keepdim=True).values
        # A class that is never worth saying still has a logarithm.
        self.gain.copy_(gain / gain.max() + SMALLEST)
        self.temperature.fill_(temperature)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: N×D -> N×K."""
        scores = super().forward(features)
        return ((scores / self.temperature).softmax(1) @ self.gain).log()


def num_parameters(module: nn.Module) -> int:
    """Number of trainable and frozen parameters."""
    return sum(p.numel() for p in module.parameters())
