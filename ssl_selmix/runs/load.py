"""A finished run as a model, and as the start of another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_selmix import models
from ssl_selmix.common import text
from ssl_selmix.common.config import flatten
from ssl_selmix.common.console import warn
from ssl_selmix.common.paths import expanded
from ssl_selmix.models.weights import NESTED, bare_name, load_into
from ssl_selmix.splits import Split, read_manifest
from ssl_selmix.training import checkpoint

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
        return {bare_name(k): v for k, v in tensors.items()}
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
    found = {bare_name(k): v for k, v in tensors.items() if k.startswith("net.")}
    if not found:
        raise ValueError("the checkpoint holds no network (no tensor net.*); give another file")
    return found


def save(net: models.Classifier, stage: Path, fingerprint: str) -> None:
    """Write what a stage hands on, its body and the head it predicts with, to its folder."""
    tensors = {f"net.{key}": value for key, value in net.state_dict().items()}
    checkpoint.save(stage / HANDED_ON, {"fingerprint": fingerprint, "teacher": tensors})


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
        settings = flatten(text.load(run / "config.yaml"))
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
    run = expanded(run_dir)
    if not (run / "config.yaml").is_file() or not (run / "manifest.json").is_file():
        raise ValueError(f"{run} is no run of ssl_selmix; it has no config.yaml and manifest.json")
    settings = flatten(text.load(run / "config.yaml"))
    manifest = json.loads((run / "manifest.json").read_text())
    config = models.Config(settings["model.name"], settings["model.bn_momentum"])
    shape = manifest["image_shape"]
    net = models.build(config, len(manifest["class_names"]), shape[0])
    notes = load_into(net, _of_network(_kept_by_last_stage(run)))
    if any(note.startswith("not in") for note in notes):
        raise ValueError(f"the weights in {run} do not fit {config.name}: {notes[0]}")
    return Predictor(net.eval(), manifest).eval()


LEARNED, JUDGED = ("labeled", "unlabeled", "validation"), ("validation", "test")


@dataclass(frozen=True)
class Origin:
    """A run of ours, as its folder records it."""

    folder: Path
    network: str
    precision: str  # "" if it is not recorded
    manifest: Mapping[str, Any]


def check_origin(
    init: Path | None, network: str, precision: str, split: Split, images_sha256: str
) -> list[str]:
    """Refuse weights of another network, or of a run that trained on what judges now; and notes.

    Weights of two networks may have the same shapes, and figures on images that were trained on are
    no evidence. Other images, as after training on another data set, are welcome.

    Raises:
        ValueError: names what does not fit, and the remedy.
    """
    run = origin_of(init) if init else None
    if run is None:
        return []
    if run.network not in ("", network):
        raise ValueError(
            f"--init {run.folder} has the weights of {run.network}, and this run builds {network}; "
            f"set model.name={run.network}"
        )
    for part in JUDGED if run.manifest["images_sha256"] == images_sha256 else ():
        seen = {i for p in LEARNED if p != part for i in run.manifest["indices"][p]}
        if both := seen & set(getattr(split, part).tolist()):
            raise ValueError(
                f"{len(both)} {part} images of this run took part in the training of --init "
                f"{run.folder} (its seed is {run.manifest['seed']}, that of this split "
                f"{split.seed}); take its split with data.manifest={run.folder / 'manifest.json'}"
            )
    if run.precision in ("", precision):
        return []
    told = f"{run.folder} computed in {run.precision}, this run in {precision}"
    return [f"{told}: its start has other figures"]


def origin_of(path: Path) -> Origin | None:
    """The run that a path leads into: its folder, a stage's, or a file in one; None if no run."""
    for folder in (path, *path.parents[:2]):
        try:
            settings = text.load(folder / "config.yaml")
            manifest = read_manifest(folder / "manifest.json")
        except (OSError, ValueError):
            continue
        model = settings.get("model")
        name = str(model.get("name", "")) if isinstance(model, dict) else ""
        return Origin(folder, name, str(settings.get("precision", "")), manifest)
    return None
