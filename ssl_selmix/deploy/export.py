"""`ssl-selmix export RUN`: the model of a finished run as a file that others can load.

Every file is written beside its place, loaded again, compared with the run's model in fp32, and
moved to its place only if it gives the same logits. FILE.json beside it says what it takes.

Shapes: N images, C×H×W pixels, K classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_selmix.common.atomic import beside, write_atomically
from ssl_selmix.common.console import say, tell
from ssl_selmix.common.names import unknown
from ssl_selmix.data import assemble, manifest
from ssl_selmix.deploy.decoder import UNTOLD, Decoder
from ssl_selmix.runs.folder import MANIFEST, RunFolder, check_free, open_run
from ssl_selmix.runs.formats import BATCHES, WRITERS, Deployed, deviation
from ssl_selmix.runs.plan import reopen
from ssl_selmix.runs.weights import Predictor, normalisation

FORMATS = tuple(WRITERS)
AS_GIVEN = "as the model took them in finetune, which was not told of a normalisation"


@dataclass(frozen=True)
class Written:
    """A file that passed the check: its deviation, relative to the largest logit."""

    path: Path
    deviation: float
    about: dict[str, Any]


def command(run: Path, files: Mapping[str, Path], **options: Any) -> None:
    """Export and say what was written; see `export`."""
    for written in export(run, files, **options).values():
        about = written.about
        shape = "×".join(map(str, about["input"]["shape"]))
        say(f"{written.path}: {about['format']}, float32 {shape} -> logits, {about['network']}")
        say(f"  input: {about['input']['values']}")
        if "load" in about:
            say(f"  load it, in its folder, with (also in {_sidecar(written.path).name}):")
            for line in about["load"].splitlines():
                say(f"    {line}" if line else "")
        check = about["check"]
        batches = " and ".join(map(str, check["batches"]))
        say(
            f"  checked: deviation {written.deviation:.1e} of the largest logit (tolerance "
            f"{check['tolerance']:g}), {check['images']}, batches of {batches}"
        )


def export(
    run: Path,
    files: Mapping[str, Path],
    *,
    normalise: bool = False,
    force: bool = False,
    tolerance: float = 1e-5,
    settings: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> dict[str, Written]:
    """Write a run's model in one or more of FORMATS.

    Args:
        run: folder of a finished run.
        files: the file of each format.
        normalise: the exported model takes pixels in 0..255 and normalises them itself.
        force: overwrite files.
        tolerance: largest deviation of a logit, relative to the largest logit.
        settings: key=value; where the run's images are now, some of which are used for the check.
        trust: the file or module of the run's data set, which is executed, if it is not ours;
            without it the check takes random images alone.

    Raises:
        ValueError: a mistake in the request, a network that a format cannot hold, or a file that
            gives other logits, which is not kept.
    """
    _check_request(files, normalise, force, tolerance)
    opened = open_run(run)
    if normalise and opened.manifest["preprocessing"] is None:
        raise ValueError(f"--normalise needs mean and std; {UNTOLD.format(run)}")
    predictor = opened.last_model()
    model = Deployed(predictor, opened.network, normalise)
    inputs, images = _inputs(opened, None if normalise else predictor, settings, trust)
    tell(f"model: {opened.stage}")
    if opened.precision != "fp32":
        say(f"the run computed in {opened.precision}; it is exported and checked in fp32")
    return {
        kind: _write(kind, path, opened, model, inputs, tolerance, images)
        for kind, path in files.items()
    }


def _check_request(
    files: Mapping[str, Path], normalise: bool, force: bool, tolerance: float
) -> None:
    _check_options(files, normalise, tolerance)
    _check_places(files, force)
    if "onnx" in files:
        missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
        if missing:
            raise ValueError(
                f"--onnx needs the package {missing[0]}; pip install 'ssl_selmix[onnx]'"
            )


def _check_options(files: Mapping[str, Path], normalise: bool, tolerance: float) -> None:
    if not files:
        raise ValueError("no format; name a file for one, such as --onnx model.onnx")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance must be > 0, not {tolerance}; 1e-5 is the default")
    for kind in files:
        if kind not in FORMATS:
            raise ValueError(unknown("format", kind, FORMATS))
    if normalise and "state_dict" in files:
        raise ValueError(
            "a state dict has no place for the normalisation; leave out --normalise, for the "
            "JSON file beside it has mean and std"
        )


def _check_places(files: Mapping[str, Path], force: bool) -> None:
    """Refuse files that cannot be written, before anything is."""
    for kind, path in files.items():
        if not path.name:
            raise ValueError(
                f"--{kind.replace('_', '-')} names no file but {str(path)!r}; name one"
            )
    taken = [place.resolve() for path in files.values() for place in (path, _sidecar(path))]
    if len(set(taken)) < len(taken):
        raise ValueError(
            "every format needs a file of its own, and FILE.json beside it; name different ones"
        )
    if "pt2" in files and files["pt2"].suffix != ".pt2":
        raise ValueError(f"torch.export.load takes names in .pt2, not {files['pt2']}; rename it")
    for path in files.values():
        folder = path.resolve().parent if path.is_symlink() else path.parent
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}; create it")
        for place in (path, _sidecar(path)):
            check_free(place, force)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _write(
    kind: str,
    path: Path,
    opened: RunFolder,
    model: Deployed,
    inputs: Sequence[Tensor],
    tolerance: float,
    images: str,
) -> Written:
    place = path.resolve()  # a link stays one
    with beside(place) as folder:
        made = folder / path.name
        loaded, extra = WRITERS[kind](model, made, inputs)
        found = deviation(loaded, model, inputs)
        if not found <= tolerance:
            raise ValueError(
                f"{path} is not written: as {kind} the model deviates by {found:.1e} of its "
                f"largest logit, and {tolerance:g} is allowed; use another format, or --tolerance"
            )
        check = {"max_deviation": found, "tolerance": tolerance, "images": images}
        about = _about(kind, opened, model) | extra | {"check": check | {"batches": list(BATCHES)}}
        # First, so that a disk that is full now leaves neither.
        write_atomically(_sidecar(path).resolve(), (json.dumps(about, indent=1) + "\n").encode())
        made.replace(place)
    return Written(path, found, about)


def _about(kind: str, opened: RunFolder, model: Deployed) -> dict[str, Any]:
    """What somebody needs to know who has the file and neither the run nor this package."""
    manifest = opened.manifest
    mean, std = normalisation(manifest)
    inside = "pixels in 0..255, which the model normalises by mean and std"
    told = manifest["preprocessing"] is not None
    outside = "(pixels in 0..255 - mean) / std, per channel"
    about = {
        "format": kind,
        "network": model.name,
        "class_names": manifest["class_names"],
        "input": {
            "shape": ["N", *manifest["image_shape"]],
            "dtype": "float32",
            "values": (inside if model.normalise else outside) if told else AS_GIVEN,
        },
        "output": "logits, N×K",
        "mean": mean,
        "std": std,
        "trained_in": opened.precision,
        "versions": {name: version(name) for name in ("ssl-selmix", "torch")},
    }
    if told and manifest["image_shape"][0] in (1, 3):
        about["input"]["size"] = Decoder(manifest).how
    return about


def _inputs(
    opened: RunFolder, scale: Predictor | None, settings: Sequence[str], trust: Sequence[str]
) -> tuple[list[Tensor], str]:
    """Batches to compare on, normalised as `scale` does it, and where they come from."""
    noise = torch.Generator().manual_seed(0)
    num, shape = sum(BATCHES), tuple(opened.manifest["image_shape"])
    if opened.manifest["preprocessing"] is None:
        found = [torch.randn((num, *shape), generator=noise)]
    else:
        found = [torch.randint(256, (num, *shape), generator=noise).float()]
    words = f"{num} random images"
    try:
        found.append(_validation(opened, num, settings, trust).float())
        words += f" and {len(found[1])} of validation"
    except (ValueError, OSError, IndexError) as error:
        if settings or trust:  # which are there for these images alone
            raise
        say(f"checked on random images alone, for the run's are not at hand: {error}")
    if scale is not None:
        found = [(images - scale.mean) / scale.std for images in found]
    return [batch for images in found for batch in images.split(BATCHES) if len(batch)], words


def _validation(
    opened: RunFolder, num: int, settings: Sequence[str], trust: Sequence[str]
) -> Tensor:
    """So many validation images of the run, N×C×H×W uint8."""
    stays = ["data.download=false"] if "data.download" in opened.settings else []
    plan = reopen(opened.path, [*stays, *settings], trust)
    split = manifest.load(opened.path / MANIFEST)
    data, _ = assemble(plan.dataset.load(plan.config["data"]), split, 0, torch.device("cpu"))
    rows = torch.linspace(0, len(data.validation) - 1, num).long()
    images = data.take(data.validation[rows])
    if list(images.shape[1:]) != opened.manifest["image_shape"]:
        raise ValueError(f"the data set's images are {tuple(images.shape[1:])} now")
    return images
