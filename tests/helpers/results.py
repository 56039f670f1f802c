"""Results of made-up runs, written as training writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_selmix import cli
from ssl_selmix.compare import methods, reading, tables
from ssl_selmix.compare.tables import Choice

START, END = [0.9, 0.4], [0.85, 0.6]


def measure(recalls: Sequence[float], **more: Any) -> dict[str, Any]:
    """Figures that follow from recalls per class."""
    mean = sum(recalls) / len(recalls)
    positive = min(recalls) > 0
    product = 1.0
    for recall in recalls:
        product *= recall
    return {
        "mean_recall": mean,
        "min_recall": min(recalls),
        "min_ht_recall": min(recalls),
        "g_mean": product ** (1 / len(recalls)),
        "h_mean": len(recalls) / sum(1 / r for r in recalls) if positive else 0.0,
        "min_coverage": min(recalls) / len(recalls),
        "accuracy": mean,
        "ece": 0.05,
        "per_class_recall": list(recalls),
        "per_class_coverage": [r / len(recalls) for r in recalls],
        **more,
    }


def stage(name: str, recalls: Sequence[float], **more: Any) -> dict[str, Any]:
    """A finished stage with the same figures on validation and test."""
    return {
        "algorithm": name,
        "steps": 100,
        "kept_step": 80,
        "seconds": 2.0,
        "head": "classifier",
        "validation": measure(recalls),
        "test": measure(recalls),
        **more,
    }


def results(
    stages: Sequence[Mapping[str, Any]], seed: int = 0, protocol: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What results.json holds."""
    split = {"labeled": {"largest": 30}, "unlabeled": {"shape": "long_tail"}, "test": 50}
    return {
        "dataset": "digits",
        "seed": seed,
        "manifest_sha256": f"{seed}" * 64,
        "protocol": {
            "network": "cnn-16",
            "parameters": 14458,
            "split": split | {"validation": 20, "manifest": None},
            "largest": "N1 and M1 count the images of the largest class",
            "checkpoint_rule": {s["algorithm"]: "best" for s in stages},
            "validation": "held out of the training images, labeled",
            "steps": [s["steps"] for s in stages],
            "precision": "fp32",
            **(protocol or {}),
        },
        "stages": list(stages),
    }


def write(
    folder: Path,
    content: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    logs: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> Path:
    """A run's folder; a log per stage."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    for i, rows in enumerate(logs):
        here = folder / f"{i + 1}-{content['stages'][i]['algorithm']}"
        here.mkdir()
        (here / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def two(seed: int = 0, start: list[float] = START, end: list[float] = END, **more: Any) -> Any:
    return results([stage("fixmatch", start), stage("selmix", end)], seed, **more)


def run(words: list[str | Path], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of the command."""
    capsys.readouterr()
    try:
        code = cli.main(["compare", *map(str, words)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def mistake(words: list[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    code, _, err = run(words, capsys)
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1, err
    return err


def groups(path: Path, *allow: str, by: tuple[str, ...] = ()) -> list[methods.Group]:
    return methods.group(reading.read([path])[0], allow, by)[0]


def names(group: methods.Group) -> list[str]:
    return [row.name for row in group.rows]


def cells(group: methods.Group, slug: str, choice: Choice | None = None) -> list[list[str]]:
    found = {s.slug: s for s in tables.of_group(group, choice or Choice())}
    return [[c.text for c in row] for row in found[slug].rows]
