"""Weights from elsewhere into a network of ours, and finished runs as models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ssl_selmix import checkpoint, models
from ssl_selmix.config import flatten
from ssl_selmix.log import warn

NESTED = ("teacher", "algorithm", "state_dict", "model", "model_state_dict", "ema_model")
PREFIXES = ("module.", "_orig_mod.", "net.")
HANDED_ON = "model.pt"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file: a checkpoint or run of ours, timm's, or a plain state dict.

    Raises:
        ValueError: the file is missing, unreadable, or holds no tensors by name.
    """
    if path.is_dir():
        return _of_network(_kept_by_last_stage(path))
    if not path.is_file():
        raise ValueError(f"no weights at {path}; give a run's folder or a file of torch.save")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make the unpickler raise nearly anything
        raise ValueError(
            f"{path} cannot be read as weights ({str(error).partition(chr(10))[0][:100]}); save a "
            "state dict with torch.save(model.state_dict(), path)"
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
        return {_bare(k): v for k, v in tensors.items()}
    if others := sorted({k.partition(".")[0] for k in tensors if k.endswith("weight")} - {"net"}):
        warn(
            f"{path} holds {', '.join(others)} beside the network, which are left out; the run's "
            f"folder, or {HANDED_ON} in it, has the head that the stage predicts with"
        )
    return _of_network(tensors)


def _of_network(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of an algorithm's state, what belongs to its network.

    Raises:
        ValueError: nothing does.
    """
    found = {_bare(k): v for k, v in tensors.items() if k.startswith("net.")}
    if not found:
        raise ValueError("the checkpoint holds no network (no tensor net.*); give another file")
    return found


def save(net: models.Classifier, stage: Path, fingerprint: str) -> None:
    """Write what a stage hands on, its body and the head it predicts with, to its folder."""
    tensors = {f"net.{key}": value for key, value in net.state_dict().items()}
    checkpoint.save(stage / HANDED_ON, {"fingerprint": fingerprint, "teacher": tensors})


def _bare(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def load_into(net: models.Classifier, tensors: Mapping[str, Tensor]) -> list[str]:
    """Copy every tensor that fits into the network; say which of either side did not.

    Names of another library are tried with the body's prefix; its classifier, whatever its name,
    is recognised by its shape.

    Raises:
        ValueError: nothing fits.
    """
    wanted = net.state_dict()
    head = _foreign_head(net, tensors)
    found: dict[str, Tensor] = {}
    left: list[str] = []
    for key, value in tensors.items():
        module, _, kind = key.rpartition(".")
        place = next((p for p in (key, f"backbone.{key}") if p in wanted), None)
        if place is None and head is not None and module == head:
            place = f"classifier.{kind}"
        if place is None or wanted[place].shape != value.shape:
            need = f", {place} needs {tuple(wanted[place].shape)}" if place else ""
            left.append(f"{key} {tuple(value.shape)}{need}")
        else:
            found[place] = value
    counted = [k for k in wanted if not k.endswith("num_batches_tracked")]
    if not any(k in found for k in counted):
        raise ValueError(
            "none of the tensors fits the network; set model.name to the network they were saved "
            f"from (first in the file: {', '.join(left[:3])})"
        )
    net.load_state_dict({**wanted, **found})
    missing = [k for k in counted if k not in found]
    notes = [f"not in the file, left as initialised: {', '.join(missing)}"] if missing else []
    return notes + ([f"in the file, did not fit: {', '.join(left)}"] if left else [])


def _foreign_head(net: models.Classifier, tensors: Mapping[str, Tensor]) -> str | None:
    """The one module of the file, not known to the network, that has its classifier's shape."""
    shape = net.classifier.weight.shape
    modules = [
        key.removesuffix(".weight")
        for key, value in tensors.items()
        if key.endswith(".weight") and value.shape == shape
    ]
    known = net.state_dict()
    foreign = [m for m in modules if not {f"{m}.weight", f"backbone.{m}.weight"} & known.keys()]
    return foreign[0] if len(foreign) == 1 else None


class Predictor(nn.Module):
    """A trained network with its normalisation: takes images as they are stored.

    Shape: images N×C×H×W, uint8 or float in 0..255 -> logits N×K.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: models.Classifier, manifest: Mapping[str, Any]) -> None:
        super().__init__()
        self.net = net
        self.class_names = tuple(manifest["class_names"])
        self.image_shape = tuple(manifest["image_shape"])
        self.register_buffer("mean", torch.tensor(manifest["mean"]).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(manifest["std"]).view(-1, 1, 1))

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


def _kept_by_last_stage(run: Path) -> dict[str, Tensor]:
    """The state that the last finished stage of a run handed on."""
    try:
        settings = flatten(OmegaConf.to_container(OmegaConf.load(run / "config.yaml")))  # type: ignore[arg-type]
        finished = len(json.loads((run / "results.json").read_text())["stages"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{run} holds no finished stage of a run; give the folder of a run that came to an "
            "end, or --resume it first"
        ) from error
    found_stages = [p for p in run.glob(f"{finished}-*") if (p / "last.pt").exists()]
    if len(found_stages) != 1:
        raise ValueError(f"{run} should hold one folder {finished}-NAME, has {len(found_stages)}")
    stage = found_stages[0]
    keep = settings.get(f"{stage.name.partition('-')[2]}.keep", "best")
    found = stage / HANDED_ON  # runs of earlier versions do not have it
    state = checkpoint.load(found if found.exists() else stage / f"{keep}.pt")
    weights: dict[str, Tensor] = state.get("teacher") or state["algorithm"]
    return weights


def load(run_dir: str | Path) -> Predictor:
    """The model that a run's last stage kept, ready to predict.

    Called with images N×C×H×W in 0..255, of the shape `.image_shape`, it returns logits N×K;
    `.predict` returns probabilities. It is on the CPU, computes in fp32 and normalises by itself.

    Raises:
        ValueError: the folder is no run, or its files are damaged.
    """
    run = Path(run_dir)
    if not (run / "config.yaml").is_file() or not (run / "manifest.json").is_file():
        raise ValueError(f"{run} is no run of ssl_selmix; it has no config.yaml and manifest.json")
    settings = flatten(OmegaConf.to_container(OmegaConf.load(run / "config.yaml")))  # type: ignore[arg-type]
    manifest = json.loads((run / "manifest.json").read_text())
    config = models.Config(settings["model.name"], settings["model.bn_momentum"])
    shape = manifest["image_shape"]
    net = models.build(config, len(manifest["class_names"]), shape[0])
    notes = load_into(net, _of_network(_kept_by_last_stage(run)))
    if any(note.startswith("not in") for note in notes):
        raise ValueError(f"the weights in {run} do not fit {config.name}: {notes[0]}")
    return Predictor(net.eval(), manifest).eval()
