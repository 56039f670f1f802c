"""What `finetune` leaves in its folder beside the log, so that it opens as a run's folder does."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ssl_selmix import models
from ssl_selmix.algorithm import Evaluation
from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.text import dump
from ssl_selmix.data import Data
from ssl_selmix.finetuning.known import rebuilt
from ssl_selmix.models import heads
from ssl_selmix.runs import weights
from ssl_selmix.runs.folder import (
    CONFIG,
    FINETUNE,
    MANIFEST,
    RESULTS,
    SCORES,
    RunFolder,
    images_of,
    seal_of,
    sha256_of_file,
)
from ssl_selmix.runs.results import SCHEMA, Manifest, Results, checked
from ssl_selmix.training import engine


@dataclass(frozen=True)
class Network:
    """How the network is built again, and how image files become what it takes.

    Attributes:
        name: of the network, or None if only the caller can build it.
        shape: C×H×W of its images.
        how: `preprocessing` of manifest.json, or None if the caller did not tell.
        body: the network whose body made the features, if training saw these.
    """

    name: str | None
    shape: tuple[int, ...]
    how: dict[str, Any] | None = None
    body: models.Classifier | None = None

    def handed_on(self, net: models.Classifier) -> models.Classifier:
        """The network with the names of tensors that it has when it is built again."""
        net = self.whole(net)
        built = rebuilt(self.name, net, self.shape[0]) if self.name is not None else None
        return net if built is None else built

    def whole(self, net: models.Classifier) -> models.Classifier:
        """What takes images: the network itself, or the body under what was trained on features."""
        return net if self.body is None else heads.joined(self.body, net)


def measured(name: str, fitted: engine.Fitted, data: Data, network: Network) -> dict[str, Any]:
    """A stage of results.json: the figures of a model on validation and test, and its digest."""
    found: dict[str, Any] = {
        "algorithm": name,
        "steps": fitted.last_step,
        "kept_step": fitted.step,
        "seconds": round(fitted.seconds, 2),
    }
    found |= engine.measure_all(fitted.algorithm, data)
    handed_on = network.handed_on(fitted.algorithm.export())
    found |= {"handed_on_sha256": weights.sha256_of(handed_on)}
    return found | ({"last": fitted.last} if fitted.last else {})


def write(
    folder: Path,
    data: Data,
    start: dict[str, Any],
    stages: Sequence[dict[str, Any]],
    network: Network,
) -> None:
    """Write results.json, by which runs on the same labels and images can be compared.

    Of a network that can be built by its name also what else a run's folder has: config.yaml and
    manifest.json.

    Args:
        folder: that of the caller.
        data: of the caller.
        start: the model as it was given, measured.
        stages: the model after each thing that was done to it, measured.
        network: how it is built again.
    """
    k = len(data.class_names)
    labels = {"labeled": data.labels, "validation": data.validation_labels}
    labels |= {"test": data.test_labels}
    counts = {part: torch.bincount(y, minlength=k).tolist() for part, y in labels.items()}
    given = [one["handed_on_sha256"] for one in (start, *stages)]
    told = {part: y.tolist() for part, y in labels.items()}
    run_id = uuid.uuid4().hex
    seen: dict[str, Any] = {"labels": told, "unlabeled": len(data.unlabeled)}
    seen |= {"image_shape": list(network.shape)}
    folder.mkdir(parents=True, exist_ok=True)
    if network.name is not None:
        about = {"run_id": run_id, "class_names": list(data.class_names), "counts": counts}
        write_manifest(folder, seen | about, network)
        write_config(folder, data.seed, network, stages)
    content = {
        "schema": SCHEMA,
        "run_id": run_id,
        "dataset": FINETUNE,
        "seed": data.seed,
        # Images of a caller have no names and may be decoded anew: labels and sizes tell them.
        "manifest_sha256": images_of(seen),
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
    results |= {"files": RunFolder(folder).digests() | {SCORES: sha256_of_file(folder / SCORES)}}
    results |= {"sha256": seal_of(results)}
    write_atomically(folder / RESULTS, (json.dumps(results, indent=1) + "\n").encode())


def write_manifest(folder: Path, seen: dict[str, Any], network: Network) -> None:
    """Write what is known of the images: labels, and how files become what the network takes."""
    channels = network.shape[0]
    mean, std = [0.0] * channels, [1.0] * channels
    if network.how is not None:
        mean, std = network.how["mean"], network.how["std"]
    content = {"schema": SCHEMA, **seen, "mean": mean, "std": std, "preprocessing": network.how}
    checked(Manifest, content)
    write_atomically(folder / MANIFEST, (json.dumps(content) + "\n").encode())


def write_config(
    folder: Path, seed: int, network: Network, stages: Sequence[dict[str, Any]]
) -> None:
    """Write the settings as a run does."""
    names = [stage["algorithm"] for stage in stages]
    content = {"algorithms": names, "dataset": FINETUNE, "seed": seed, "precision": "fp32"}
    content["model"] = {"name": network.name, "bn_momentum": models.Config().bn_momentum}
    content |= {stage["algorithm"]: stage["settings"] for stage in stages}
    write_atomically(folder / CONFIG, dump(content).encode())


def save_handed_on(
    folder: Path, stages: Sequence[dict[str, Any]], net: models.Classifier, network: Network
) -> None:
    """Write the weights as a run's last stage does, if the network can be built by its name."""
    if network.name is not None:
        stage = folder / f"{len(stages)}-{stages[-1]['algorithm']}"
        stage.mkdir(parents=True, exist_ok=True)
        weights.save(network.handed_on(net), stage, FINETUNE)


def save_scores(folder: Path, seen: Evaluation, class_names: Sequence[str]) -> None:
    """Write the logits of the validation images and their classes, for `ssl-selmix posthoc`."""
    content = io.BytesIO()
    logits, labels = seen.logits.cpu().numpy(), seen.labels.cpu().numpy()
    np.savez(content, scores=logits, labels=labels, class_names=np.array(class_names))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SCORES, content.getvalue())


def save_model(folder: Path, model: nn.Module) -> None:
    """Write the tensors of the fine-tuned model by name."""
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    write_atomically(folder / weights.HANDED_ON, content.getvalue())
