"""Every objective, and every variant of SelMix, trains to finite results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_selmix import models
from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.selmix import SelMix
from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.common import plugins
from ssl_selmix.data import Data, ImageSet, assemble
from ssl_selmix.selmix import trust
from ssl_selmix.splits import Counts, LongTailSplit
from ssl_selmix.training import checkpoint, engine
from ssl_selmix.training.log import SilentLog

OBJECTIVES = sorted(plugins.objectives())


def make_data(num_classes: int) -> Data:
    """Images of one colour per class, so that a network that never trained errs on some class."""
    labels = np.arange(num_classes).repeat(20)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(100, (len(labels), 1, 8, 8), generator=generator)
    images = torch.from_numpy(labels)[:, None, None, None] * 50 + noise
    source = ImageSet(
        train=images.to(torch.uint8),
        train_labels=labels,
        class_names=tuple("abcd"[:num_classes]),
        mean=(100.0,),
        std=(60.0,),
        weak=Weak(pad=1, flip=False),
        strong=Strong(weak=Weak(pad=1, flip=False)),
    )
    rule = LongTailSplit(Counts(6, rho=3), Counts(8, rho=2), validation=3, test=2)
    split = rule.draw(labels, num_classes, seed=0)
    data, _ = assemble(source, split, seed=0, device=torch.device("cpu"))
    return data.at_stage("1-test")


def train(
    data: Data, folder: Path, resume: bool = False, **options: Any
) -> tuple[SelMix, SilentLog]:
    torch.manual_seed(1)
    num_classes = len(data.class_names)
    net = models.build(models.Config("cnn-4"), num_classes, 1)
    settings: dict[str, Any] = {"steps": 20, "batch": 4, "evaluate_every": 10, "lr": 0.05}
    rows = SilentLog(keep=True)
    algorithm = SelMix(net, data.task, SelMix.Config(**settings | options))
    fitted = engine.fit(algorithm, data, folder, rows, "f", resume=resume)
    assert isinstance(fitted.algorithm, SelMix)
    assert all(torch.tensor(v).isfinite() for _, row in rows.trained for v in row.values())
    return fitted.algorithm, rows


def is_finite(module: torch.nn.Module) -> bool:
    return all(bool(t.isfinite().all()) for t in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("num_classes", [2, 3])
def test_every_objective_survives_two_reestimations(
    objective: str, num_classes: int, tmp_path: Path
) -> None:
    algorithm, rows = train(make_data(num_classes), tmp_path, objective=objective)
    assert len(rows.extras) == 3  # before the first step, in the middle, at the end
    for extra in rows.extras:
        assert all(value.isfinite().all() for value in extra.values())
        if extra["taken_back"]:
            continue  # estimated nothing
        pairs = extra["pair_distribution"]
        assert (pairs >= 0).all() and float(pairs.sum()) == pytest.approx(1)
    assert is_finite(algorithm)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        {"step": "fixed"},
        {"step": "fixed", "ema": 0.9},
        {"policy": "greedy"},
        {"policy": "uniform"},
        {"policy": "natural"},
        {"mix": "none"},
        {"batch_norm": "batch"},
        {"beta_min": 1.0},
        {"smoothing": 0.0},
        {"body_lr": 0.0},
        {"partners": "labeled"},
        {"pseudo_prior": "estimated"},
        {"pseudo_weight": "confidence", "uniform_share": 0.1},
        {"train_bias": False, "label_term": "published"},
        {"temperature": 1e-6},
        {"temperature": 1e6},
    ],
    ids=str,
)
def test_every_variant_trains(option: dict[str, Any], tmp_path: Path) -> None:
    algorithm, rows = train(make_data(3), tmp_path, keep="last", **option)
    assert is_finite(algorithm)
    assert all(value.isfinite().all() for extra in rows.extras for value in extra.values())


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
def test_stored_batch_statistics_stay(batch_norm: str, tmp_path: Path) -> None:
    data = make_data(3)
    torch.manual_seed(1)
    before = models.build(models.Config("cnn-4"), 3, 1).state_dict()
    algorithm, _ = train(data, tmp_path, keep="last", batch_norm=batch_norm)
    after = algorithm.net.state_dict()
    kept = [key for key in before if "running" in key]
    assert kept and all(torch.equal(before[key], after[key]) for key in kept)
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_multipliers_are_restored_with_the_stage(tmp_path: Path) -> None:
    data = make_data(3)
    first, _ = train(data, tmp_path, objective="min_recall", keep="last")
    copy = SelMix(models.build(models.Config("cnn-4"), 3, 1), data.task, first.config)
    copy.load_state_dict(first.state_dict())
    assert first.objective.multipliers is not None and copy.objective.multipliers is not None
    assert torch.equal(first.objective.multipliers, copy.objective.multipliers)
    assert checkpoint.digest(first.state_dict()) == checkpoint.digest(copy.state_dict())


def test_weights_taken_back_are_not_saved_as_those_that_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(3)
    monkeypatch.setattr(trust.Verdict, "broken", True)
    algorithm, rows = train(data, tmp_path, select="mean_recall", lr=0.3, policy="uniform")
    assert [float(extra["taken_back"]) for extra in rows.extras] == [0, 1, 1]
    best = checkpoint.load(tmp_path / "best.pt")
    assert best["step"] > 0  # else the test shows nothing
    algorithm.load_state_dict(best["teacher"])
    figures = engine.measure(engine.evaluate(algorithm, data), data.task.tail)
    assert figures["mean_recall"] == best["value"]


def test_an_objective_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def first(c):\n    return c[0, 0] / c[0].sum()\n")
    data = make_data(3)
    _, rows = train(data, tmp_path / "run", objective=f"{tmp_path / 'mine.py'}:first")
    assert all(value.isfinite().all() for extra in rows.extras for value in extra.values())


def test_a_stage_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    data = make_data(3)
    options: dict[str, Any] = {"steps": 40, "evaluate_every": 2, "step": "fixed", "lr": 1e-9}
    options |= {"stop": "patience", "patience": 2}
    _, rows = train(data, tmp_path, **options)
    assert len(rows.extras) == 3  # the start, and two re-estimations that are no better
    before = (tmp_path / "last.pt").read_bytes()
    _, again = train(data, tmp_path, resume=True, **options)
    assert again.extras == [] and (tmp_path / "last.pt").read_bytes() == before


def test_constraints_from_a_file_are_kept_in_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def precise(c):\n    return c[0, 0] / (c[:, 0].sum() + 1e-9) - 0.99\n"
        "def f1(c):\n    return (2 * c.diagonal() / (c.sum(0) + c.sum(1))).mean()\n"
    )
    where = f"{tmp_path}/mine.py"
    _, rows = train(
        make_data(3),
        tmp_path / "stage",
        objective=f"{where}:f1",
        constraints=[f"{where}:precise"],
        lambda_max=5.0,
    )
    assert all("slack_precise" in extra for extra in rows.extras)
    state = checkpoint.load(tmp_path / "stage" / "last.pt")["algorithm"]
    lam = state["objective.lam"]
    assert lam.shape == (1,) and 0 < float(lam) <= 5


@pytest.mark.slow
@pytest.mark.parametrize("moment", [3, 10, 14, 23])
def test_killed_and_resumed_is_exact_when_everything_is_taken_back(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust.Verdict, "broken", property(lambda _: True))
    data = make_data(3)
    options: dict[str, Any] = {"steps": 30, "stop": "gain"}
    train(data, tmp_path / "whole", **options)

    after_step = SelMix.after_step

    def die(self: SelMix, ctx: Context) -> None:
        after_step(self, ctx)
        if ctx.step == moment:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SelMix, "after_step", die)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "cut", **options)
    train(data, tmp_path / "cut", resume=True, **options)
    for name in ("last.pt", "best.pt"):
        states = [checkpoint.load(tmp_path / run / name) for run in ("whole", "cut")]
        for state in states:
            state.pop("seconds", None)
        assert checkpoint.digest(states[0]) == checkpoint.digest(states[1])


@pytest.mark.slow
def test_a_diverging_trusted_step_recovers(tmp_path: Path) -> None:
    data = make_data(3)
    algorithm, _ = train(data, tmp_path, steps=40, lr=1e30)
    last = checkpoint.load(tmp_path / "last.pt")["algorithm"]
    assert is_finite(algorithm) and all(
        v.isfinite().all() for v in last.values() if torch.is_tensor(v)
    )
    assert last["trust._extra_state"]["factor"] < 1
    with pytest.raises(engine.NonFiniteLoss):
        train(data, tmp_path / "fixed", steps=40, lr=1e30, step="fixed")


def test_feasible_weights_come_before_better_ones(tmp_path: Path) -> None:
    """The best weights are those that violate least; only among equals counts the figure."""
    data = make_data(3)
    _, rows = train(data, tmp_path, objective="mean_recall_min_coverage", steps=40, lr=0.3)
    ranks = [(float(e["feasibility"]), float(e["objective"])) for e in rows.extras]
    best = checkpoint.load(tmp_path / "best.pt")
    assert (best["feasibility"], best["value"]) == max(ranks)
