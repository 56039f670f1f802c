"""A finished run as a model, and as the start of another run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ssl_selmix.data import manifest
from ssl_selmix.runs.folder import MANIFEST, RunFolder, open_run, run_around
from ssl_selmix.runs.results import StartedFrom
from ssl_selmix.runs.weights import Predictor, of_file
from ssl_selmix.splits import Split

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


def check_origin(
    init: Path | None, network: str, precision: str, split: Split, images_sha256: str
) -> list[str]:
    """Refuse weights of another network, or of a run that trained on what judges now; and notes.

    Weights of two networks may have the same shapes, and figures on images that were trained on are
    no evidence. Other images, as after training on another data set, are welcome.

    Raises:
        ValueError: names what does not fit, and the remedy.
    """
    run = run_around(init) if init else None
    if run is None:
        return []
    of_caller = run.of_finetune  # whose images have no names, so that nothing is known of them
    if run.network != network:
        raise ValueError(
            f"--init {run.path} has the weights of {run.network}, and this run builds {network}; "
            f"set model.name={run.network}"
        )
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
