"""Files of weights: what a stage hands on, and what others saved; and the model made of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_selmix import models
from ssl_selmix.common.console import warn
from ssl_selmix.models.weights import NESTED, bare_name, load_into
from ssl_selmix.training import checkpoint

HANDED_ON = "model.pt"


def of_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file: a checkpoint of ours, timm's, a plain state dict, or safetensors.

    Raises:
        ValueError: the file is missing, unreadable, or holds no tensors by name.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}; give a run's folder or a file of torch.save")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        # timm's script saves its arguments beside the weights: a namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make the unpickler raise nearly anything
        raise ValueError(
            f"{path} cannot be read as weights ({_reason(error)}); save a state dict with "
            "torch.save(model.state_dict(), path)"
        ) from error
    ours = isinstance(content, Mapping) and {"sha256", "state"} <= content.keys()
    if ours:
        content = checkpoint.load(path)
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping) and content[key]:
            content = content[key]
    tensors = {str(k): v for k, v in dict(content).items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name; save model.state_dict()")
    if not ours:
        return {bare_name(k): v for k, v in tensors.items()}
    if others := sorted({k.partition(".")[0] for k in tensors if k.endswith("weight")} - {"net"}):
        warn(
            f"{path} holds {', '.join(others)} beside the network, which are left out; the run's "
            f"folder, or {HANDED_ON} in it, has the head that the stage predicts with"
        )
    return _of_network(tensors)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise ValueError(f"{path} needs safetensors; pip install safetensors") from error
    try:
        found: dict[str, Tensor] = load(path.read_bytes())
    except Exception as error:  # of the library, which has its own
        raise ValueError(
            f"{path} cannot be read as weights ({_reason(error)}); fetch it again"
        ) from error
    return {bare_name(key): value for key, value in found.items()}


def _reason(error: Exception) -> str:
    """Why torch reads no file, without its advice to execute what is in it."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds {found[1]}, which is no tensor and might be code"
    first = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")[0]
    return first[:100] or type(error).__name__


def _of_network(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of an algorithm's state, what belongs to its network.

    Raises:
        ValueError: nothing does.
    """
    found = {bare_name(k): v for k, v in tensors.items() if k.startswith("net.")}
    if not found:
        raise ValueError("the checkpoint holds no network (no tensor net.*); give another file")
    return found


def of_checkpoint(file: Path) -> dict[str, Tensor]:
    """The network in a checkpoint of ours, or in what a stage handed on.

    Raises:
        ValueError: the file is damaged, or holds no network.
    """
    state = checkpoint.load(file)
    return _of_network(state.get("teacher") or state["algorithm"])


def handed_on(net: models.Classifier) -> dict[str, Tensor]:
    """What a stage hands on: its body and the head it predicts with."""
    return {f"net.{key}": value for key, value in net.state_dict().items()}


def save(net: models.Classifier, stage: Path, fingerprint: str) -> None:
    """Write what a stage hands on to its folder."""
    checkpoint.save(stage / HANDED_ON, {"fingerprint": fingerprint, "teacher": handed_on(net)})


def handed_on_in(stage: Path, sha256: str, fingerprint: str) -> dict[str, Tensor] | None:
    """What a stage's folder says that it handed on; None if that is not what has this digest."""
    try:
        state = checkpoint.load(stage / HANDED_ON, fingerprint)
        tensors = _of_network(state.get("teacher") or state["algorithm"])
    except (ValueError, LookupError, AttributeError, TypeError):
        return None
    return tensors if checkpoint.digest(tensors) == sha256 else None


def check_alike(file: Path, others: Iterable[Path]) -> None:
    """Refuse a checkpoint of another run than others in its stage's folder.

    Raises:
        ValueError: its fingerprint is another.
    """
    own = checkpoint.load(file).get("fingerprint")
    for other in others:
        try:
            found = checkpoint.load(other).get("fingerprint")
        except checkpoint.Refused:  # missing or damaged
            continue
        if found != own:
            raise ValueError(f"{file} is of another run than {other}; restore it")


def sha256_of(net: models.Classifier) -> str:
    """The digest by which a later run knows what a stage handed on."""
    return checkpoint.digest(_of_network(handed_on(net)))


def normalisation(manifest: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and std of what the network takes, in 0..255: its own, or else those of the images."""
    how = manifest.get("preprocessing") or manifest
    return list(how["mean"]), list(how["std"])


class Predictor(nn.Module):
    """A trained network with its normalisation: takes images as they are stored.

    Shape: images N×C×H×W, uint8 or float in 0..255 -> logits N×K.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: models.Classifier, manifest: Mapping[str, Any], config: models.Config
    ) -> None:
        super().__init__()
        self.net, self.config = net, config
        self.class_names = tuple(manifest["class_names"])
        self.image_shape = tuple(manifest["image_shape"])
        # Of each channel, or one of all features.
        shape = (-1, *[1] * (len(self.image_shape) - 1))
        mean, std = normalisation(manifest)
        self.register_buffer("mean", torch.tensor(mean).view(shape))
        self.register_buffer("std", torch.tensor(std).view(shape))

    def forward(self, images: Tensor) -> Tensor:
        """Logits N×K."""
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"images must be N×{'×'.join(map(str, self.image_shape))}, not "
                f"{tuple(images.shape)}; resize or add the batch dimension"
            )
        logits: Tensor = self.net((images.float() - self.mean) / self.std)
        return logits

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor:
        """Class probabilities N×K."""
        return self.forward(images).softmax(1)


def predictor(
    config: models.Config, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Predictor:
    """A network with these weights, on the CPU, that normalises as the manifest says.

    Raises:
        ValueError: the weights are of another network.
    """
    with torch.random.fork_rng([]):  # the network is first built with random weights
        net = models.build(config, len(manifest["class_names"]), manifest["image_shape"][0])
    notes = load_into(net, tensors)
    if any(note.startswith("not in") for note in notes):
        raise ValueError(f"they do not fit {config.name}: {notes[0]}")
    return Predictor(net.eval(), manifest, config).eval()
