"""Images without content, and what a network says about them: its bias towards classes.

Shapes: K classes, C×H×W a normalised image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_selmix.algorithm import Algorithm, Context, Evaluation, Task
from ssl_selmix.common.rules import Checked, one_of, within
from ssl_selmix.models import Classifier

WHY_PIXELS = "it looks at an image without content"
KINDS = ("white", "black", "noise", "phase")


@dataclass
class Config(Checked):
    """Which image has no content."""

    # white: pixels of 1 after normalisation, as published; black: of -1; noise: independent
    # normal pixels; phase: the amplitudes 1/f of photographs with random phases
    reference: str = one_of(*KINDS)


@dataclass
class TrainingConfig(Config):
    """And since when targets are free of the bias that it shows."""

    debias_from: float = within("[0, 1]", 0.202)  # share of the steps before targets follow b
    reference_mode: str = one_of("stored", "batch")  # batch statistics of b; batch: as published


def reference_image(kind: str, shape: tuple[int, ...]) -> Tensor:
    """One normalised image without content, 1×C×H×W; the random ones are always the same.

    `white` is the constant 1 of CDMAD's code (Lee & Kim, CVPR 2024), which is a light grey where
    pixels are normalised. `phase` has the spectrum of photographs and the phases of noise, mean 0
    and standard deviation 1 per channel.

    Raises:
        ValueError: the network does not take images.
    """
    if len(shape) != 3:
        raise ValueError(
            f"an image without content has channels, height and width, and this network takes "
            f"inputs of shape {tuple(shape)}; train on the images, or use --then posthoc"
        )
    if kind in ("white", "black"):
        return torch.full((1, *shape), 1.0 if kind == "white" else -1.0)
    noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    if kind == "noise" or shape[1] * shape[2] == 1:
        return noise
    spectrum = torch.fft.rfft2(noise)
    rows, columns = torch.fft.fftfreq(shape[1]), torch.fft.rfftfreq(shape[2])
    frequency = torch.hypot(rows[:, None], columns[None, :])
    frequency[0, 0] = torch.inf  # no constant part
    phases = spectrum / spectrum.abs().clamp_min(1e-12)
    image: Tensor = torch.fft.irfft2(phases / frequency, s=shape[1:])
    return image / image.std((2, 3), keepdim=True, correction=0)


class Reference(nn.Module):
    """The image, and the network's logits for it. Nothing of it is saved, for it follows."""

    image: Tensor

    def __init__(self, task: Task, config: Config) -> None:
        super().__init__()
        made = reference_image(config.reference, task.image_shape)
        made = made.contiguous(memory_format=torch.channels_last)  # as batches are
        self.register_buffer("image", made, persistent=False)

    @torch.no_grad()
    def features(self, net: Classifier) -> Tensor:
        """Features 1×D of the image, in the mode in which the network is."""
        return net.share_features(self.image)  # every process sees the whole image

    @torch.no_grad()
    def bias(self, net: Classifier) -> Tensor:
        """The classifier's bias (K,) less the logits of the image, in evaluation mode.

        The arg-max of features @ weight + this is that of the logits less those of the image.
        """
        with evaluating(net):
            classifier = net.classifier
            return -nn.functional.linear(self.features(net), classifier.weight)[0]

    def into(self, net: Classifier) -> Classifier:
        """The network itself, with that bias in its classifier."""
        bias = self.bias(self.prepare(net))
        with torch.no_grad():
            net.classifier.bias.copy_(bias)
        return net

    @staticmethod
    def prepare(net: Classifier) -> Classifier:
        """The network itself, whose classifier has a bias now."""
        if net.classifier.bias is None:
            net.classifier.bias = nn.Parameter(torch.zeros_like(net.classifier.weight[:, 0]))
        return net


class Debiased(Algorithm):
    """A method whose targets and predictions are logits less b, those of the image.

    Lee & Kim, CVPR 2024. Their code takes b with the batch statistics of that one image, which
    then enter the stored statistics, too: `reference_mode=batch`. Else b is taken as in prediction.
    A method derives from this and, after it, from what it changes.
    """

    after = "debias"  # what it is after another stage, for any trained network

    def __init__(self, net: Classifier, task: Task, config: Algorithm.Config) -> None:
        super().__init__(net, task, config)
        assert isinstance(config, TrainingConfig)
        self.image_config: TrainingConfig = config
        self.reference = Reference(task, config)
        self.reference.prepare(net)

    @classmethod
    def needs_pixels(cls, config: Algorithm.Config) -> str:
        """For the image."""
        return WHY_PIXELS

    @torch.no_grad()
    def bias_logits(self) -> Tensor:
        """Logits b (K,) of the image, of the network that learns."""
        if self.image_config.reference_mode == "batch":
            return self._logits()
        with evaluating(self.net):
            return self._logits()

    def debiased(self, logits: Tensor, progress: float) -> Tensor:
        """Logits N×K less b, once that has set in."""
        if progress < self.image_config.debias_from:
            return logits
        return logits - self.bias_logits().to(logits.dtype)

    def on_validation(self, evaluation: Evaluation, ctx: Context) -> dict[str, Tensor]:
        """softmax(b) of the teacher as well: the classes it prefers in an image without content."""
        teacher = ctx.teacher
        assert isinstance(teacher, Debiased)
        with torch.no_grad(), evaluating(teacher.net):
            preferred = teacher._logits().float().softmax(0)
        return {**super().on_validation(evaluation, ctx), "reference_prior": preferred}

    def _logits(self) -> Tensor:
        return self.net.classifier(self.reference.features(self.net))[0]  # type: ignore[no-any-return]

    def head(self, features: Tensor) -> Tensor:
        """Logits less b."""
        weight = self.net.classifier.weight
        return nn.functional.linear(features, weight, self.reference.bias(self.net))

    def export(self) -> Classifier:
        """The network with -b in its classifier's bias."""
        return self.reference.into(super().export())


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Stored batch statistics, which stay as they are; every module's mode comes back."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
