"""What `finetune` leaves in its folder beside the log: results for `compare`, and the model."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_selmix.common import config
from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.data import Data
from ssl_selmix.runs import weights
from ssl_selmix.runs.folder import FINETUNE, RESULTS, seal_of
from ssl_selmix.runs.results import SCHEMA, Results, checked
from ssl_selmix.training import engine


def measured(name: str, fitted: engine.Fitted, data: Data) -> dict[str, Any]:
    """A stage of results.json: the figures of a model on validation and test, and its digest."""
    found: dict[str, Any] = {
        "algorithm": name,
        "steps": fitted.last_step,
        "kept_step": fitted.step,
        "seconds": round(fitted.seconds, 2),
    }
    found |= engine.measure_all(fitted.algorithm, data)
    found |= {"handed_on_sha256": weights.sha256_of(fitted.algorithm.export())}
    return found | ({"last": fitted.last} if fitted.last else {})


def write(
    folder: Path,
    data: Data,
    start: dict[str, Any],
    stages: Sequence[dict[str, Any]],
) -> None:
    """Write results.json, by which runs on the same labels and images can be compared.

    Args:
        folder: that of the caller.
        data: of the caller.
        start: the model as it was given, measured.
        stages: the model after each thing that was done to it, measured.
    """
    k = len(data.class_names)
    labels = {"labeled": data.labels, "validation": data.validation_labels}
    labels |= {"test": data.test_labels}
    counts = {part: torch.bincount(y, minlength=k).tolist() for part, y in labels.items()}
    given = [one["handed_on_sha256"] for one in (start, *stages)]
    told = {part: y.tolist() for part, y in labels.items()}
    content = {
        "schema": SCHEMA,
        "run_id": uuid.uuid4().hex,
        "dataset": FINETUNE,
        "seed": data.seed,
        # Images of a caller have no names and may be decoded anew: labels and sizes tell them.
        "manifest_sha256": config.fingerprint(told, len(data.unlabeled), data.image_shape),
        "counts": counts,
        "class_names": list(data.class_names),
        "tail": data.task.tail,
        "protocol": {
            "split": {},
            "checkpoint_rule": {s["algorithm"]: s["settings"].get("keep", "last") for s in stages},
            "steps": [stage["steps"] for stage in stages],
        },
        "start": start,
        "stages": [
            # Of no run: the identity is that of the weights, lest one be guessed from figures.
            stage | {"started_from": {"sha256": sha256, "run_id": given[0][:32]}}
            for stage, sha256 in zip(stages, given, strict=False)
        ],
    }
    results = checked(Results, content).plain()
    results |= {"sha256": seal_of(results)}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RESULTS, (json.dumps(results, indent=1) + "\n").encode())


def save_model(folder: Path, model: nn.Module) -> None:
    """Write the tensors of the fine-tuned model by name."""
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    write_atomically(folder / weights.HANDED_ON, content.getvalue())
