"""The stage `wise_ft`: which two networks, what it hands on, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_selmix import cli
from ssl_selmix.algorithms.wise_ft import WiseFT
from ssl_selmix.runs.folder import RunFolder
from ssl_selmix.runs.weights import of_checkpoint
from tests.helpers.runs import unbound

SMALL = [
    *("supervised.steps=20", "supervised.batch=16", "supervised.lr=0.1"),
    *("crt.steps=12", "crt.batch=16", "crt.lr=0.1", "crt.keep=last", "supervised.keep=last"),
    *("model.name=cnn-4", "pictures=false", "threads=1", "wise_ft.points=5"),
    "wise_ft.objective=mean_recall",
]
CHAIN = ["--algo", "supervised", "--then", "crt", "--then", "wise_ft"]


def train(out: Path, *words: str) -> int:
    sections = {"model", "pictures", "threads", *words}
    small = [word for word in SMALL if word.partition("=")[0].partition(".")[0] in sections]
    return cli.main([*words, "--out", str(out), *small])


def results(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "results.json").read_text()))


def logged(stage: Path) -> dict[str, Any]:
    """What the one validation of the stage logged."""
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["validation", "remark"]
    return dict(rows[0])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of three stages, never to be changed."""
    out = tmp_path_factory.mktemp("wise_ft") / "run"
    assert train(out, *CHAIN) == 0
    yield out


def test_it_hands_on_a_network_between_the_two_before(chain: Path) -> None:
    row = logged(chain / "3-wise_ft")
    start, end, found = (
        of_checkpoint(chain / place / "model.pt")
        for place in ("1-supervised", "2-crt", "3-wise_ft")
    )
    assert not torch.equal(start["classifier.weight"], end["classifier.weight"])
    for key, value in found.items():
        if value.is_floating_point():
            wanted = start[key].lerp(end[key], row["alpha"])
            assert torch.allclose(value, wanted, atol=1e-6), key
    assert row["objective_after"] >= max(row["objective"], row["objective_start"])
    told = results(chain)
    assert [stage["steps"] for stage in told["stages"]] == [20, 12, 0]
    assert told["stages"][2]["validation"]["mean_recall"] == pytest.approx(row["objective_after"])
    assert told["stages"][0]["validation"]["mean_recall"] == pytest.approx(row["objective_start"])


def test_a_run_of_its_own_finds_the_same_two(chain: Path, tmp_path: Path) -> None:
    digest = results(chain)["stages"][2]["handed_on_sha256"]
    # A file of the second stage, and two runs of one stage each as a sweep makes them.
    words = ["--algo", "wise_ft", "--init"]
    assert train(tmp_path / "file", *words, str(chain / "2-crt" / "model.pt")) == 0
    assert results(tmp_path / "file")["stages"][0]["handed_on_sha256"] == digest
    first, second, third = (tmp_path / name for name in "abc")
    assert train(first, "--algo", "supervised") == 0
    assert train(second, "--algo", "crt", "--init", str(first)) == 0
    assert train(third, *words, str(second)) == 0
    row = logged(third / "1-wise_ft")
    ends = [RunFolder(run).weights()["classifier.weight"] for run in (first, second, third)]
    assert torch.allclose(ends[2], ends[0].lerp(ends[1], row["alpha"]), atol=1e-6)


def test_it_is_done_again_if_its_checkpoint_is_lost(chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(out, *CHAIN) == 0
    for file in (out / "3-wise_ft").glob("*.pt"):
        file.unlink()
    kept = json.loads((unbound(out) / "results.json").read_text())
    kept["stages"] = kept["stages"][:2]
    (out / "results.json").write_text(json.dumps(kept))
    assert train(out, *CHAIN, "--resume") == 0
    both = [[s["handed_on_sha256"] for s in results(run)["stages"]] for run in (out, chain)]
    assert both[0] == both[1]


def test_what_has_no_two_networks_is_refused_at_once(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        assert train(tmp_path / "none", *words) == 2 and not (tmp_path / "none").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "cannot come first" in refused("--algo", "wise_ft")
    told = refused("--algo", "supervised", "--then", "wise_ft")
    assert "supervised before it begins with random weights; put a stage between" in told
    init = ["--algo", "wise_ft", "--init"]
    lone = tmp_path / "lone.pt"
    torch.save(of_checkpoint(chain / "2-crt" / "model.pt"), lone)
    assert "lone.pt is no run" in refused(*init, str(lone))
    told = refused(*init, str(chain / "1-supervised" / "model.pt"))
    assert "its first stage began with random weights" in told
    first, second = tmp_path / "a", tmp_path / "b"
    assert train(first, "--algo", "supervised") == 0
    assert train(second, "--algo", "crt", "--init", str(first)) == 0
    first.rename(tmp_path / "moved")
    capsys.readouterr()
    assert f"{second} began with {first}, which is needed as well" in refused(*init, str(second))


@pytest.mark.parametrize("name", ["steps", "lr", "keep", "select", "step_size"])
def test_it_has_no_settings_of_steps(name: str) -> None:
    given: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match=name):
        WiseFT.Config(**given)


def test_a_line_has_two_ends() -> None:
    with pytest.raises(ValueError, match="points must be >= 2, not 1"):
        WiseFT.Config(points=1)
