"""The study of the pool's class distribution: what methods take it for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studies import label_shift
from tests.helpers.results import results, stage, write


def test_the_error_is_that_of_the_last_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "inverted-0" / "simpro"
    write(out, results([stage("simpro", [0.9, 0.5])]))
    (out / "done").touch()
    (out / "manifest.json").write_text(json.dumps({"counts": {"unlabeled": [1, 3]}}))
    (out / "1-simpro").mkdir(exist_ok=True)
    rows = [{"step": 0, "estimated_prior": [0.25, 0.75]}, {"step": 9, "loss": 1.0}]
    rows += [{"step": 9, "estimated_prior": [0.5, 0.5]}]
    (out / "1-simpro" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = label_shift.method_job(tmp_path, "inverted", 0, [], ["simpro"])
    assert found["methods"]["simpro"] == pytest.approx(
        {"l1_error": 0.5, "mean_recall": 0.7, "min_recall": 0.5}
    )
    printed = label_shift.methods_table([found], ["simpro"])
    assert "inverted" in printed and "50.0" in printed and "70.0" in printed
