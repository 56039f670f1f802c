"""The run that weights of --init come from, and what makes it unfit for the run that takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ssl_selmix.splits import Split, read_manifest

LEARNED, JUDGED = ("labeled", "unlabeled", "validation"), ("validation", "test")


@dataclass(frozen=True)
class Origin:
    """A run of ours, as its folder records it."""

    folder: Path
    network: str
    precision: str  # "" if it is not recorded
    manifest: Mapping[str, Any]


def check(
    init: Path | None, network: str, precision: str, split: Split, images_sha256: str
) -> list[str]:
    """Refuse weights of another network, or of a run that trained on what judges now; and notes.

    Weights of two networks may have the same shapes, and figures on images that were trained on are
    no evidence. Other images, as after training on another data set, are welcome.

    Raises:
        ValueError: names what does not fit, and the remedy.
    """
    run = find(init) if init else None
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


def find(path: Path) -> Origin | None:
    """The run that a path leads into: its folder, a stage's, or a file in one; None if no run."""
    for folder in (path, *path.parents[:2]):
        try:
            tree = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
            manifest = read_manifest(folder / "manifest.json")
        except (OSError, ValueError, YAMLError, OmegaConfBaseException):
            continue
        settings = tree if isinstance(tree, dict) else {}
        model = settings.get("model")
        name = str(model.get("name", "")) if isinstance(model, dict) else ""
        return Origin(folder, name, str(settings.get("precision", "")), manifest)
    return None
