"""Scores of held-out images with their classes: from a run, or from a file of another program.

Shapes: N images, K classes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_selmix.algorithm import Algorithm, Task
from ssl_selmix.common.names import unknown
from ssl_selmix.models.execution import Execution
from ssl_selmix.runs import load
from ssl_selmix.runs.folder import RunFolder
from ssl_selmix.runs.inputs import reload
from ssl_selmix.runs.plan import reopen
from ssl_selmix.training import engine

KEYS = ("scores", "logits", "probs")  # the first two mean the same
MORE = ("labels", "class_names")


@dataclass(frozen=True)
class Scores:
    """What a model says of held-out images, and what they are.

    Shape: scores N×K logits, or probabilities; labels (N,).
    """

    source: str
    scores: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    probabilities: bool = False
    task: Task | None = None  # of a run


def of_run(run: Path, settings: Sequence[str] = ()) -> Scores:
    """Validation logits of the model that a run's last stage kept.

    Raises:
        ValueError: the folder is no finished run, or its images are others.
    """
    opened = RunFolder(run)
    if opened.of_finetune:
        if settings:
            raise ValueError(f"{run} was written by finetune and takes no {settings[0]}; omit it")
        opened.check()
        return replace(of_file(opened.scores()), source=f"{run}, validation images")
    plan = reopen(run, settings)
    inputs = reload(plan)
    data = inputs.data
    net = inputs.of_inputs(load.load(run).net).prepared(Execution(plan.run.precision), data.device)
    seen = engine.evaluate(Algorithm(net, data.task, Algorithm.Config()), data)
    source = f"{run}, validation images"
    return Scores(source, seen.logits.cpu(), seen.labels.cpu(), data.class_names, task=data.task)


def of_file(path: Path) -> Scores:
    """The arrays of an .npz file: `scores` (or `logits`), or `probs`; `labels`; `class_names`.

    Raises:
        ValueError: says which array is missing, unknown, or of another kind or shape.
    """
    arrays = _arrays(path)
    for key in arrays:
        if key not in (*KEYS, *MORE):
            raise ValueError(f"{path}: {unknown('array', key, (*KEYS, *MORE))}")
    given = [key for key in KEYS if key in arrays]
    if len(given) != 1 or "labels" not in arrays:
        raise ValueError(
            f"{path} must hold labels and one of {', '.join(KEYS)}, it holds "
            f"{', '.join(arrays) or 'nothing'}; write it with numpy.savez(FILE, scores=, labels=)"
        )
    scores, labels = arrays[given[0]], arrays["labels"]
    if scores.ndim != 2 or scores.shape[1] < 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"{path}: {given[0]} must be (images, classes) and labels (images,), got "
            f"{scores.shape} and {labels.shape}; store one row of scores and one label an image"
        )
    for name, array, kinds in ((given[0], scores, "fiu"), ("labels", labels, "iu")):
        if array.dtype.kind not in kinds:
            wanted = "integers" if kinds == "iu" else "numbers"
            raise ValueError(f"{path}: {name} must be {wanted}, got {array.dtype}; convert them")
    names = arrays.get("class_names", np.arange(scores.shape[1]).astype(str))
    if names.dtype.kind not in "US" or names.shape != (scores.shape[1],):
        raise ValueError(
            f"{path}: class_names must be {scores.shape[1]} words, got {names.dtype} of shape "
            f"{names.shape}; name each column of the scores"
        )
    words = np.char.decode(names, "utf-8") if names.dtype.kind == "S" else names
    return Scores(
        str(path),
        torch.from_numpy(scores.astype(np.float64)),
        torch.from_numpy(labels.astype(np.int64)),
        tuple(map(str, words)),
        probabilities=given[0] == "probs",
    )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of the file; objects are refused, for reading them would run code."""
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("one array without a name")
        with opened as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise ValueError(f"no file {path}; give an .npz of scores, or a run's folder") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        said = str(error).partition("\n")[0]
        if "allow_pickle" in said:
            said = "an array of objects"
        raise ValueError(
            f"{path} is no .npz of plain arrays ({said[:100]}); write it with "
            "numpy.savez(FILE, scores=, labels=), numbers and words only"
        ) from error
