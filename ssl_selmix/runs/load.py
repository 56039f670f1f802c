"""A finished run as a model, and as the start of another run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_selmix.common.config import ADDED
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import manifest
from ssl_selmix.models.pretrained import RESOLVED
from ssl_selmix.runs.folder import CONFIG, MANIFEST, RunFolder, named, open_run, run_around
from ssl_selmix.runs.results import StartedFrom
from ssl_selmix.runs.weights import HANDED_ON, Predictor, of_file
from ssl_selmix.splits import Split
from ssl_selmix.training import checkpoint

LEARNED, JUDGED = ("labeled", "unlabeled", "validation"), ("validation", "test")


def load(run_dir: str | Path) -> Predictor:
    """The model that a run's last stage kept, ready to predict.

    Called with images N×C×H×W in 0..255, of the shape `.image_shape`, it returns logits N×K;
    `.predict` returns probabilities. It is on the CPU, computes in fp32 and normalises by itself.

    Raises:
        ValueError: the folder is no run, or its files are damaged.
    """
    return open_run(run_dir).last_model()


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a run's last stage, or of a file of weights.

    Raises:
        ValueError: they are missing or unreadable, or are no tensors by name.
    """
    return RunFolder(path).weights() if path.is_dir() else of_file(path)


def origin_of(path: Path, sha256: str) -> StartedFrom:
    """What a run that starts from these weights records of them."""
    run = run_around(path)
    if run is None or not run.stages:
        return StartedFrom(sha256=sha256)
    passed = [n for n, s in enumerate(run.stages, 1) if s.handed_on_sha256 == sha256]
    return StartedFrom(sha256=sha256, run_id=run.run_id, stages=passed[-1] if passed else None)


def begin_of(path: Path, sha256: str) -> dict[str, Tensor]:
    """What the stage that handed on these weights had begun with: the other end of its line.

    Args:
        path: a run's folder, or a file in one.
        sha256: digest of the weights.

    Raises:
        ValueError: they are of no stage that began with weights, or those are gone.
    """
    run = run_around(path)
    if run is None:
        raise ValueError(
            f"--init {path} is no run, and does not say what its weights began as; give the "
            "folder of a run whose last stage started from another one"
        )
    made = [n for n, stage in enumerate(run.stages) if stage.handed_on_sha256 == sha256]
    last = made[-1] if made else len(run.stages) - 1
    if last > 0:
        file, wanted = run.place(last - 1) / HANDED_ON, run.stages[last - 1].handed_on_sha256
    elif init := run.config.get("init"):
        with named(run.path / CONFIG):
            file, wanted = expanded(str(init["path"])), str(init["sha256"])
    else:
        raise ValueError(
            f"{run.path} has nothing between a start and an end: its first stage began with random "
            "weights; give a run whose last stage started from another one"
        )
    with told_beside(f"{run.path} began with {file}, which is needed as well"):
        found = read(file)
        if wanted not in (None, checkpoint.digest(found)):
            raise ValueError("it has other weights now; restore it")
    return found


@contextmanager
def told_beside(words: str) -> Iterator[None]:
    """Put words before those of a mistake.

    Raises:
        ValueError: in the place of another one.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{words}: {error}") from error


def check_origin(
    init: Path | None,
    model: Mapping[str, Any],
    precision: str,
    split: Split,
    images_sha256: str,
) -> list[str]:
    """Refuse weights of another network, or of a run that trained on what judges now; and notes.

    `model` are the settings of this run's network. Weights of two networks may have the same
    shapes, and figures on images that were trained on are no evidence. Other images, as after
    training on another data set, are welcome.

    Raises:
        ValueError: names what does not fit, and the remedy.
    """
    run = run_around(init) if init else None
    if run is None:
        return []
    network = str(model["name"])
    of_caller = run.of_finetune  # whose images have no names, so that nothing is known of them
    if run.network != network:
        raise ValueError(
            f"--init {run.path} has the weights of {run.network}, and this run builds {network}; "
            f"set model.name={run.network}"
        )
    if not of_caller:
        _check_input(run, model)
    written = {} if of_caller else manifest.read(run.path / MANIFEST)
    for part in JUDGED if written.get("images_sha256") == images_sha256 else ():
        seen = {i for p in LEARNED if p != part for i in written["indices"][p]}
        if both := seen & set(getattr(split, part).tolist()):
            raise ValueError(
                f"{len(both)} {part} images of this run took part in the training of --init "
                f"{run.path} (its seed is {written['seed']}, that of this split "
                f"{split.seed}); take its split with data.manifest={run.path / MANIFEST}"
            )
    if run.precision == precision:
        return []
    told = f"{run.path} computed in {run.precision}, this run in {precision}"
    return [f"{told}: its start has other figures"]


def _check_input(run: RunFolder, model: Mapping[str, Any]) -> None:
    """Refuse weights whose network saw images in another way: nothing in their shapes tells.

    Raises:
        ValueError: names the settings of the network that made them.
    """
    theirs = {key: run.settings.get(key, value) for key, value in ADDED.items()}
    if _sees(theirs) == _sees({f"model.{name}": value for name, value in model.items()}):
        return
    shown = ("model.pretrained", "model.size", "model.tune", "model.rank", "model.scale")
    repeat = " ".join(f"{key}={theirs[key]}" for key in shown if theirs[key] != ADDED[key])
    raise ValueError(
        f"--init {run.path} has a network that sees images in another way than this run's does; "
        f"repeat its settings: {repeat or 'neither model.pretrained nor model.size'}"
    )


def _sees(settings: Mapping[str, Any]) -> list[Any]:
    """What decides features beside the tensors that every network of the name has."""
    adapter = settings["model.tune"] == "adapter"
    names = (*RESOLVED, *(("rank", "scale") if adapter else ()))
    return [adapter, *(settings[f"model.{name}"] for name in names)]
