"""`ssl-selmix advise`: what it finds, what that rests on, and that test images stay apart."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ssl_selmix import cli, decision
from ssl_selmix.data import Data
from ssl_selmix.decision.goal import Goal, build
from ssl_selmix.deploy import advise, scores
from tests.helpers.runs import unbound

NET = ["model.name=cnn-8", "pictures=false"]


def train(out: Path, algo: str, steps: int, *words: str) -> Path:
    own = [f"{algo}.steps={steps}", f"{algo}.evaluate_every={steps}", f"{algo}.lr=0.1"]
    assert cli.main(["--algo", algo, "--out", str(out), *NET, *own, *words]) == 0
    return out


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that says frequent classes too often."""
    out = tmp_path_factory.mktemp("advise") / "biased"
    return train(out, "supervised", 150, "supervised.logit_adjustment=0", "data.test=3")


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["advise", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def finding(found: dict[str, Any], topic: str) -> dict[str, Any]:
    one: dict[str, Any] = next(f for f in found["findings"] if f["topic"] == topic)
    return one


def test_a_biased_run_is_told_to_move_its_boundaries(
    biased: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer(capsys, biased)
    measured = json.loads((biased / "results.json").read_text())["stages"][0]["validation"]
    offsets = finding(found, "offsets")
    assert found["objective"] == "h_mean" and offsets["verdict"] == "gain"
    assert offsets["figures"]["before"] == pytest.approx(measured["h_mean"], abs=1e-6)
    low, high = offsets["figures"]["interval"]
    gain = offsets["figures"]["cross_fitted"] - offsets["figures"]["before"]
    assert 0 < low < high and f"{100 * gain:+.1f} points" in offsets["text"]
    images = finding(found, "images")
    assert images["verdict"] == "few" and images["figures"]["least"] == 20
    assert finding(found, "next")["verdict"] == "posthoc"
    # The command that it gives is one that runs.
    text = finding(found, "next")["text"]
    words = text.partition("ssl-selmix train ")[2].partition(";")[0].split()
    assert cli.main([*words, "--out", str(tmp_path / "next")]) == 0
    end = json.loads((tmp_path / "next" / "results.json").read_text())
    assert end["stages"][0]["validation"]["h_mean"] > end["start"]["validation"]["h_mean"]


def test_it_looks_at_validation_images_only(
    biased: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    expected = answer(capsys, biased)
    file = biased / "results.json"
    text = file.read_text()
    poisoned = json.loads(text)
    for stage in poisoned["stages"]:
        stage["test"]["mean_recall"] = stage["test"]["min_recall"] = 0.123
        stage["test"]["per_class_recall"] = [0.123] * 10

    def refuse(*_: Any) -> None:
        raise AssertionError("test images were looked at")

    monkeypatch.setattr(Data, "test_batches", refuse)
    try:
        file.write_text(json.dumps(poisoned))
        unbound(biased)
        assert answer(capsys, biased) == expected
    finally:
        file.write_text(text)


def test_against_labels_only(
    biased: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hardly = train(tmp_path / "hardly", "supervised", 2, "data.test=3")
    ssl = finding(answer(capsys, biased, "--against", hardly), "ssl")
    assert ssl["verdict"] == "better" and ssl["figures"]["interval"][0] > 0
    assert ssl["figures"]["change"] == pytest.approx(
        ssl["figures"]["mean_recall"] - ssl["figures"]["mean_recall_against"]
    )
    back = answer(capsys, hardly, "--against", biased)
    assert finding(back, "ssl")["verdict"] == "worse"
    same = finding(answer(capsys, biased, "--against", biased), "ssl")
    assert same["verdict"] == "not shown" and same["figures"]["change"] == 0
    # Two steps teach nothing, and no later stage makes up for it.
    assert finding(back, "next")["verdict"] == "train longer"
    assert "never predicted" in {f["verdict"] for f in back["findings"]}
    other = train(tmp_path / "other", "supervised", 2, "data.test=3", "--seed", "1")
    assert cli.main(["advise", str(biased), "--against", str(other)]) == 2
    err = capsys.readouterr().err
    assert "has other images or another split" in err and err.count("\n") == 1


def test_sentences_are_printed_after_their_topics(
    biased: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["advise", str(biased), "--objective", "min_ht_recall"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("judged by min_ht_recall")
    topics = [line.split()[0] for line in lines[1:]]
    assert topics[:3] == ["offsets", "classes", "images"] and topics[-1] == "next"
    assert all(any(c.isdigit() for c in line) for line in lines[1:])


def test_the_hardest_pair_is_bounded_as_trying_all_offsets_says() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(3).repeat(30)
    centres = np.array([[2.0, 0, 0], [0, 1.0, 0.6], [0, 0.6, 1.0]])
    values = centres[labels] + 0.7 * generator.normal(size=(90, 3))
    pair = advise.hardest_pair(values, labels, values.argmax(1))
    assert pair.classes == (1, 2) and pair.images == (30, 30)
    one, two = ((values[:, 1] - values[:, 2])[labels == k] for k in (1, 2))
    wins = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(one, two)]
    assert pair.auc == pytest.approx(np.mean(wins))
    assert pair.interval[0] < pair.auc < pair.interval[1]
    grid = np.linspace(-5, 5, 4001)
    reached = max(min((one >= t).mean(), (two < t).mean()) for t in grid)
    assert pair.bound == pytest.approx(reached)
    # No offsets for all three classes do better for the worse of the two.
    for offsets in generator.normal(size=(2000, 3)):
        predicted = (values + offsets).argmax(1)
        recalls = [(predicted == k)[labels == k].mean() for k in (1, 2)]
        assert min(recalls) <= pair.bound


def test_many_classes_are_looked_at_where_they_are_confused() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(30).repeat(20)
    values = 4 * np.eye(30)[labels] + generator.normal(size=(600, 30))
    values[labels == 7] += 4 * (np.eye(30)[21] - np.eye(30)[7])
    assert advise.hardest_pair(values, labels, values.argmax(1)).classes == (7, 21)


def case_of(values: np.ndarray, labels: np.ndarray, name: str) -> advise._Case:
    """What `of_run` knows of a run with these scores."""
    seen = scores.Scores("scores", torch.tensor(values), torch.tensor(labels), ("a", "b", "c"))
    rule = decision.posthoc(seen.scores, seen.labels, objective=name)
    goal = Goal(build(name, 3, ()), np.full(3, 1 / 3), 1e-7)
    # A run records its command without the places of its images.
    manifest = {"command": "ssl-selmix train --algo supervised --dataset features seed=3"}
    config = {"data": {"root": "own features", "more_roots": ["b"]}}
    run: Any = SimpleNamespace(path="runs/a", of_finetune=False, stages=[], manifest=manifest)
    run.config = config
    run.stages.append(SimpleNamespace(algorithm="supervised"))
    return advise._Case(run, seen, name, goal, rule, advise.hardest_pair(values, labels, labels))


def test_a_figure_that_one_class_decides_alone_is_not_followed() -> None:
    labels = np.arange(3).repeat([12, 12, 6])
    values = np.eye(3)[np.minimum(labels, 1)]  # c looks like b in every image
    (one,) = advise._next(case_of(values, labels, "h_mean"))
    assert one.verdict == "other objective" and one.figures["classes"] == 1
    assert "1 of 3 classes have no validation image right" in one.text
    assert "ssl-selmix advise runs/a --objective mean_recall" in one.text
    (one,) = advise._next(case_of(values, labels, "mean_recall"))
    assert one.verdict == "selmix"
    own = (
        "--init runs/a --dataset features seed=3 'data.root=own features' 'data.more_roots=[\"b\"]'"
    )
    assert own in one.text


@pytest.mark.parametrize("name", ["h_mean", "min_recall", "mean_recall"])
def test_few_images_are_no_reason_for_a_figure_that_needs_more(name: str) -> None:
    labels = np.arange(3).repeat(12)
    found = advise._images(case_of(np.eye(3)[labels], labels, name))
    other = {"h_mean": "choose by mean_recall", "min_recall": "choose by h_mean"}.get(name)
    assert found.verdict == "few" and ("choose by" in found.text) == (other is not None)
    assert other is None or other in found.text


def signs(rows: list[dict[str, Any]], spread: bool = True) -> list[str]:
    return [f.verdict for f in advise._of_log("1-x", rows, spread=spread)]


def test_signs_in_logs() -> None:
    even, one = np.full((3, 3), 1 / 9).tolist(), (np.eye(3)[0][:, None] * np.eye(3)[1]).tolist()
    assert signs([{"mask_rate": 0.9}, {"mask_rate": 0.01}]) == ["few pseudo-labels"]
    assert signs([{"mask_rate": 0.0}, {"mask_rate": 0.5}]) == []
    assert signs([{"pair_distribution": even}, {"pair_distribution": one}]) == ["one class in P"]
    assert signs([{"pair_distribution": one}, {"pair_distribution": even}]) == []
    assert signs([{"pair_distribution": one}], spread=False) == []
    back = [{"taken_back": value} for value in (0.0, 1.0, 1.0, 0.0, 1.0)]
    assert signs(back) == ["steps taken back"] and signs(back[:2]) == []


def test_a_handful_of_validation_images_is_refused(
    biased: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = scores.Scores("scores", torch.eye(3), torch.arange(3), ("a", "b", "c"))
    monkeypatch.setattr(scores, "of_run", lambda *_: few)
    capsys.readouterr()
    assert cli.main(["advise", str(biased)]) == 2
    assert "3 validation images, and advice needs 5 at least; hold" in capsys.readouterr().err


def test_a_run_that_was_tuned_already_is_told_so(
    biased: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    words = ["--algo", "posthoc", "--init", str(biased), *NET, "data.test=3"]
    assert cli.main([*words, "posthoc.objective=g_mean", "--out", str(out)]) == 0
    found = answer(capsys, out)
    verdicts = [f["verdict"] for f in found["findings"] if f["topic"] == "next"]
    assert found["objective"] == "g_mean" and verdicts[0] == "tuned already"
    assert verdicts[1] in ("selmix", "labels") and finding(found, "offsets")["verdict"] != "gain"
