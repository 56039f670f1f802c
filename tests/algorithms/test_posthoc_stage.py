"""The stage `posthoc`: offsets that land in the bias, and what it refuses."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_selmix import cli, decision
from ssl_selmix.algorithm import Algorithm, load
from ssl_selmix.algorithms.posthoc import Posthoc
from ssl_selmix.contract import life, reporting, subjects
from ssl_selmix.models import Classifier
from ssl_selmix.training import engine
from ssl_selmix.training.log import SilentLog
from tests.helpers import gaussians
from tests.helpers.runs import unbound

SMALL = [
    *("fixmatch.steps=30", "fixmatch.batch=16", "fixmatch.evaluate_every=30"),
    *("selmix.steps=12", "selmix.evaluate_every=10", "selmix.batch=8", "model.name=cnn-4"),
    "pictures=false",
]


@cache
def first_stage() -> Classifier:
    """A network that neglects rare classes; never to be changed."""
    data = gaussians.make_data()
    torch.manual_seed(0)
    kind = load("supervised")[1]
    settings: dict[str, Any] = {"logit_adjustment": 0.0, "steps": 100, "batch": 16, "ema": 0.95}
    algorithm = kind(gaussians.make_net(), data.task, kind.Config(**settings, keep="last"))
    with TemporaryDirectory() as folder:
        return subjects.fit(algorithm, data, Path(folder)).algorithm.export()


def start() -> Classifier:
    net = gaussians.make_net()
    net.load_state_dict(first_stage().state_dict())
    return net


def stage(net: Classifier | None = None, **settings: Any) -> tuple[Posthoc, dict[str, Tensor]]:
    """The finished stage, and what it logged."""
    data, log = gaussians.make_data().at_stage("2-posthoc"), SilentLog(keep=True)
    torch.manual_seed(0)
    algorithm = Posthoc(net or start(), data.task, Posthoc.Config(**settings))
    with TemporaryDirectory() as folder:
        fitted = subjects.fit(algorithm, data, Path(folder), log=log).algorithm
    assert isinstance(fitted, Posthoc) and len(log.extras) == 1 and not log.trained
    return fitted, log.extras[0]


def validation(net: Classifier) -> tuple[Tensor, Tensor]:
    data = gaussians.make_data()
    found = engine.evaluate(Algorithm(net, data.task, Algorithm.Config()), data)
    return found.logits, found.labels


def test_the_bias_takes_what_posthoc_finds_and_nothing_else_moves() -> None:
    fitted, logs = stage()
    logits, labels = validation(first_stage())
    rule = decision.posthoc(logits, labels, objective="h_mean", seed=int(fitted.seed))
    assert torch.equal(fitted.offsets, rule.offsets) and bool(rule.offsets.abs().max() > 0.1)
    before, after = first_stage().state_dict(), fitted.export().state_dict()
    added = (before["classifier.bias"] + rule.offsets).float()
    assert torch.allclose(after.pop("classifier.bias"), added, atol=1e-6)
    assert all(torch.equal(after[key], before[key]) for key in after)
    for key, figures in {
        "objective": rule.before,
        "objective_after": rule.after,
        "objective_cross_fitted": rule.cross_fitted,
    }.items():
        assert float(logs[key]) == pytest.approx(figures["objective"])
    assert float(logs["objective_optimism"]) == pytest.approx(rule.optimism["objective"])
    assert list(fitted.remarks()) == list(rule.notes)
    now, _ = validation(fitted.export())
    assert torch.allclose(now, (logits + rule.offsets).float(), atol=1e-5)


def test_it_helps_the_worst_class_of_new_images() -> None:
    data = gaussians.make_data()
    before = engine.measure_test(Algorithm(start(), data.task, Algorithm.Config()), data)
    after = engine.measure_test(stage(objective="min_recall")[0], data)
    assert after["min_recall"] > before["min_recall"] + 0.05


def test_thresholds_by_the_labeled_shares() -> None:
    fitted, logs = stage(rule="labeled_prior")
    shares = torch.tensor([32.0, 16, 8, 4], dtype=torch.float64)
    wanted = -shares.log() + shares.log().mean()
    assert torch.allclose(fitted.offsets, wanted)
    assert logs["objective_after"] > logs["objective"] and "objective_cross_fitted" not in logs


def test_a_classifier_without_bias_gets_one() -> None:
    net = start()
    net.classifier.bias = None  # type: ignore[assignment]
    fitted, _ = stage(net)
    assert torch.allclose(fitted.export().classifier.bias, fitted.offsets.float())


def test_the_prior_at_deployment_decides_about_accuracy(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def accuracy(c):\n    return c.trace()\n\n\ndef counted(c):\n    return float(c[3, 3])\n"
    )
    objective = f"{tmp_path}/mine.py:accuracy"
    skewed: dict[str, Any] = {"prior": "given", "prior_given": [1.0, 1.0, 1.0, 97.0]}
    offsets = stage(objective=objective)[0].offsets
    rare = stage(objective=objective, **skewed)[0].offsets
    assert rare[3] - rare[0] > offsets[3] - offsets[0] + 1
    fitted, logs = stage(objective=objective, prior="pool")
    assert logs["estimated_prior"].shape == (4,) and float(logs["prior_trusted"]) == 1
    assert fitted.offsets[0] - fitted.offsets[3] > offsets[0] - offsets[3]
    # A function without a gradient is polished.
    assert stage(objective=f"{tmp_path}/mine.py:counted")[1]["objective_after"] == 0.25


def test_alpha_and_constraints_reach_the_search(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def first(c):\n    return c[0, 0] / c[0].sum() - 0.9\n")
    rule = f"{tmp_path}/mine.py:first"
    fitted, _ = stage(objective="mean_recall", constraints=[rule])
    logits, labels = validation(fitted.export())
    assert (logits.argmax(1) == labels)[labels == 0].double().mean() >= 0.9
    loose = stage(objective="mean_recall_min_coverage", alpha=0.5)[0]
    tight = stage(objective="mean_recall_min_coverage", alpha=0.99)[0]
    assert not torch.equal(loose.offsets, tight.offsets)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rule": "mixture"}, "rule=mixture draws a rule for each image"),
        ({"rule": "best"}, "rule must be one of offsets, gains, labeled_prior, not 'best'"),
        ({"folds": 1}, "folds must be >= 2, not 1"),
        ({"prior": "given"}, "prior=given takes K numbers"),
        ({"prior_given": [0.5, 0.5]}, "prior=validation and prior_given"),
        ({"prior": "given", "prior_given": [0.5, 0.5]}, "needs 4 positive numbers"),
        ({"alpha": 0.9}, "has no option 'alpha'"),
        ({"objective": "h_mena"}, "unknown objective 'h_mena'"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as told:
        stage(**settings)
    assert words in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["steps", "lr", "ema", "keep", "select", "step_size", "tau"])
def test_it_has_no_settings_of_steps(name: str) -> None:
    given: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match=name):
        Posthoc.Config(**given)


def test_a_gain_matrix_becomes_part_of_the_classifier() -> None:
    fitted, logs = stage(rule="gains", objective="mean_recall_min_coverage")
    assert not fitted.hands_on_linear and logs["gain"].shape == (4, 4)
    logits, labels = validation(first_stage())
    seed = int(fitted.seed)
    asked = {"objective": "mean_recall_min_coverage", "rule": "gains"}
    rule = decision.posthoc(logits.log_softmax(1), labels, **asked, seed=seed)  # type: ignore[arg-type]
    now, _ = validation(fitted.export())
    assert torch.equal(now.argmax(1), rule.predict(logits))
    # Each row of W may have another constant: columns differ by as much as those of the rule.
    adjusted = rule.adjust(logits.double())
    assert (now - adjusted - (now - adjusted)[:, :1]).abs().max() < 1e-3
    assert float(logs["objective_after"]) == pytest.approx(rule.after["objective"])
    old, new = first_stage().state_dict(), fitted.export().state_dict()
    assert all(torch.equal(new[key], value) for key, value in old.items())


@pytest.mark.parametrize(
    "check", [life.check_export, life.check_state, life.check_resume, life.check_on_validation]
)
def test_a_gain_matrix_keeps_the_contract(check: reporting.Check, tmp_path: Path) -> None:
    check(subjects.subject("posthoc", rule="gains"), tmp_path)


def test_a_run_that_ends_in_a_gain_matrix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = ["--algo", "fixmatch", "--then", "posthoc", "posthoc.rule=gains"]
    assert train(tmp_path / "more", *chain, "--then", "selmix") == 2
    assert "2-posthoc hands on a network that ends in a gain matrix" in capsys.readouterr().err
    out = tmp_path / "run"
    assert train(out, *chain) == 0
    found = json.loads((out / "results.json").read_text())
    measured = found["stages"][1]["validation"]["per_class_recall"]
    assert cli.main(["posthoc", str(out), "--rule", "offsets", "--json"]) == 0
    told = capsys.readouterr().out
    again = json.loads(told[told.index("\n{") :])
    assert again["before"]["per_class_recall"] == pytest.approx(measured)
    assert cli.main(["export", str(out), "--pt2", str(tmp_path / "model.pt2")]) == 0
    assert cli.main(["export", str(out), "--state-dict", str(tmp_path / "model.pt")]) == 2
    assert "use --onnx or --pt2" in capsys.readouterr().err
    assert train(tmp_path / "next", "--algo", "selmix", "--init", str(out)) == 2
    assert "ends in a gain matrix, which no stage can start from" in capsys.readouterr().err


def train(out: Path, *words: str) -> int:
    sections = {"model", "pictures", *words}
    small = [word for word in SMALL if word.partition("=")[0].partition(".")[0] in sections]
    return cli.main([*words, "--out", str(out), *small])


def test_stages_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, names = tmp_path / "run", ["posthoc", "selmix", "posthoc"]
    chain = ["--algo", "fixmatch", *(word for name in names for word in ("--then", name))]
    assert train(out, *chain, "posthoc.objective=mean_recall") == 0
    assert "2-posthoc: Solver: Frank-Wolfe" in capsys.readouterr().out
    found = json.loads((out / "results.json").read_text())
    assert [s["steps"] for s in found["stages"]] == [30, 0, 12, 0] == found["protocol"]["steps"]
    rows = [json.loads(line) for line in (out / "2-posthoc/metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows][:2] == ["validation", "remark"]
    assert rows[0]["objective"] == pytest.approx(found["stages"][0]["validation"]["mean_recall"])
    reached = found["stages"][1]["validation"]["mean_recall"]
    assert reached == pytest.approx(rows[0]["objective_after"], abs=0.006)  # an image of 200

    files = {p: p.read_bytes() for p in out.rglob("*") if p.suffix in (".pt", ".jsonl", ".json")}
    assert train(out, *chain, "posthoc.objective=mean_recall", "--resume") == 0
    assert {p: p.read_bytes() for p in files} == files
    # A stage whose checkpoint is lost is done again, with the same end.
    for place in ("2-posthoc", "3-selmix", "4-posthoc"):
        for file in (out / place).glob("*.pt"):
            file.unlink()
    kept = json.loads((unbound(out) / "results.json").read_text())
    kept["stages"] = kept["stages"][:1]
    (out / "results.json").write_text(json.dumps(kept))
    assert train(out, *chain, "posthoc.objective=mean_recall", "--resume") == 0
    again = json.loads((out / "results.json").read_text())
    digests = [[s["handed_on_sha256"] for s in r["stages"]] for r in (found, again)]
    assert digests[0] == digests[1]


def test_it_cannot_come_first_but_takes_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "none", "--algo", "posthoc") == 2
    assert "posthoc trains nothing and cannot come first" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(first, "--algo", "fixmatch") == 0
    words = ["--algo", "posthoc", "--init", str(first)]
    assert train(second, *words) == 0
    found = json.loads((second / "results.json").read_text())
    reached, begun = (s["validation"]["mean_recall"] for s in (found["stages"][0], found["start"]))
    assert reached > begun
    # What looks at a run again gets on with one that began so.
    assert cli.main(["estimate", str(second), "--method", "count", "--json"]) == 0
    capsys.readouterr()
    assert train(tmp_path / "third", *words, "posthoc.lr=0.1") == 2
    assert "unknown key 'posthoc.lr'" in capsys.readouterr().err
