"""What `finetune` does beside training: offsets, a point between start and end, and the table.

Shapes: N images, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ssl_selmix import decision, metrics
from ssl_selmix.algorithm import Algorithm
from ssl_selmix.data import Data
from ssl_selmix.decision import DecisionRule
from ssl_selmix.finetuning import record
from ssl_selmix.methods import weight_line
from ssl_selmix.objectives import Function, Objective
from ssl_selmix.runs.summary import FIGURES
from ssl_selmix.training import engine

START, OFFSETS, TRAINED, LINE = "start", "posthoc", "SelMix", "WiSE-FT"
POINTS = 21  # on the line, as its authors look at
BESIDE = "posthoc"  # folder of what is no part of the chain


def logits_of(algorithm: Algorithm, data: Data) -> Tensor:
    """Logits N×K of the images that are measured on."""
    num = len(data.test_labels)
    return engine.predict(algorithm, data.test_batches(), num, keep_features=False)[1]


class Compared:
    """All that one call compares: its rows of figures and, for a folder, its results.

    Attributes:
        rows: the figures on the images that are measured on, by what was done.
    """

    def __init__(
        self, data: Data, folder: Path | None, label: str, network: record.Network
    ) -> None:
        """Of these images, perhaps for a folder; the label is the objective's in results.json."""
        self._data, self._folder, self._label, self._network = data, folder, label, network
        self.rows: dict[str, dict[str, Any]] = {}
        self._chain: list[str] = []  # what was done to the model, in order
        self._stages: list[dict[str, Any]] = []  # start and chain, for results.json

    @property
    def last(self) -> dict[str, Any]:
        """The figures of the model as it is now."""
        return self.rows[", then ".join(self._chain) or START]

    @property
    def trained(self) -> bool:
        """Whether anything was done to the model."""
        return bool(self._chain)

    def _figures(self, logits: Tensor) -> dict[str, Any]:
        data = self._data
        return metrics.evaluate(
            logits, data.test_labels, len(data.class_names), tail=data.task.tail
        )

    def _stage(self, name: str, fitted: engine.Fitted, settings: dict[str, Any]) -> dict[str, Any]:
        told = {"settings": settings} if settings else {}
        return record.measured(name, fitted, self._data, self._network) | told

    def start(self, algorithm: Algorithm) -> Tensor:
        """Measure the model as it was given; its logits N×K."""
        logits = logits_of(algorithm, self._data)
        self.rows[START] = self._figures(logits)
        if self._folder is not None:
            self._stages.append(self._stage("start", engine.Fitted(algorithm, 0, 0, 0.0), {}))
        return logits

    def add(self, row: str, fitted: engine.Fitted, name: str, settings: dict[str, Any]) -> None:
        """Measure the model after something more was done to it."""
        self._chain.append(row)
        self.rows[", then ".join(self._chain)] = self._figures(
            logits_of(fitted.algorithm, self._data)
        )
        if self._folder is not None:
            self._stages.append(self._stage(name, fitted, settings))

    def beside(
        self, algorithm: Algorithm, objective: str | Function | Objective, seed: int
    ) -> None:
        """Measure offsets on the model as it is, which stays so: what training has to beat."""
        folder = self._folder and self._folder / BESIDE
        other = Compared(self._data, folder, self._label, self._network)
        other._stages = list(self._stages)
        shifted = copy.deepcopy(algorithm)
        other.shift(shifted, objective, seed, Console(quiet=True))
        self.rows[OFFSETS] = other.last
        if other._folder is not None:
            other.write(shifted)

    def shift(
        self,
        algorithm: Algorithm,
        objective: str | Function | Objective,
        seed: int,
        console: Console,
    ) -> DecisionRule:
        """Fit offsets for the objective to the validation logits, and add them to the bias."""
        seen = engine.evaluate(algorithm, self._data)
        rule = decision.posthoc(seen.logits, seen.labels, objective=objective, seed=seed)
        bias = algorithm.net.classifier.bias
        with torch.no_grad():
            bias.add_(rule.offsets.to(bias))
        for note in rule.notes:
            console.print(f"posthoc: {note}", highlight=False, markup=False)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            rule.save(self._folder / "rule.npz")
        told = {"rule": "offsets", "objective": self._label}
        self.add(OFFSETS, engine.Fitted(algorithm, 0, 0, 0.0), "posthoc", told)
        return rule

    def between(
        self, algorithm: Algorithm, begun: Mapping[str, Tensor], objective: Objective
    ) -> float:
        """Move to the best network between the weights of before training and those of now."""
        points = weight_line.choose(
            *(algorithm.net, begun, POINTS, objective),
            evaluate=lambda: engine.evaluate(algorithm, self._data),
        )
        told = {"points": POINTS, "objective": self._label}
        self.add(LINE, engine.Fitted(algorithm, 0, 0, 0.0), "wise_ft", told)
        return weight_line.best(points).alpha

    def write(self, algorithm: Algorithm) -> None:
        """Write results.json and what else opens the folder as a run's, of the model as it is."""
        assert self._folder is not None
        start, *stages = self._stages
        folder, data, network = self._folder, self._data, self._network
        record.save_handed_on(folder, stages, algorithm.export(), network)
        record.save_scores(folder, engine.evaluate(algorithm, data), data.class_names)
        record.write(folder, data, start, stages, network)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Figures in percent, a line for each of the rows.

    >>> print(table({"start": {"mean_recall": 0.5, "min_recall": 0.25, "g_mean": 0.4}}))
    percent   mean recall   worst class   G-mean
    start            50.0          25.0     40.0
    """
    shown = {k: title for k, title in FIGURES.items() if all(k in f for f in rows.values())}
    width = max(map(len, [*rows, "percent"]))
    lines = ["   ".join(["percent".ljust(width), *shown.values()])]
    for name, figures in rows.items():
        cells = [f"{100 * figures[k]:.1f}".rjust(len(title)) for k, title in shown.items()]
        lines.append("   ".join([name.ljust(width), *cells]))
    return "\n".join(lines)
