"""The filter of labels: what it doubts, what it leaves alone, and that a run goes on as it was."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_selmix import cli
from ssl_selmix.algorithm import Evaluation
from ssl_selmix.contract import subject
from ssl_selmix.contract.subjects import fit, make_data, saved
from ssl_selmix.methods import label_filter
from ssl_selmix.methods.label_filter import judged, lower_half, mixture, probabilities

STUDY = Path(__file__).parents[2] / "studies" / "flipped_digits.py"


def test_two_groups_of_losses_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    small = 0.1 + 0.05 * torch.rand(80, generator=generator)
    large = 3 + torch.rand(20, generator=generator)
    order = torch.randperm(100, generator=generator)
    found = probabilities(torch.cat([small, large])[order])
    assert bool((found[order < 80] > 0.99).all()) and bool((found[order >= 80] < 0.01).all())


def test_probabilities_are_those_of_the_mixture_that_they_make() -> None:
    """At the end of expectation maximisation both steps change nothing."""
    generator = torch.Generator().manual_seed(1)
    small = torch.randn(300, generator=generator, dtype=torch.float64) * 0.3 + 1
    large = torch.randn(100, generator=generator, dtype=torch.float64) + 4
    losses = torch.cat([small, large]).sort().values
    found = mixture(losses)
    log_p = []
    for r in (found, 1 - found):
        share, mean = r.mean(), (r * losses).sum() / r.sum()
        variance = (r * (losses - mean).square()).sum() / r.sum()
        log_p.append(share.log() - variance.log() / 2 - (losses - mean).square() / variance / 2)
    torch.testing.assert_close(torch.stack(log_p).softmax(0)[0], found, atol=1e-5, rtol=0)
    assert 0.7 < float(found.mean()) < 0.8 and bool(((found > 0.1) & (found < 0.9)).any())


@pytest.mark.parametrize("losses", [torch.zeros(60), torch.arange(60.0), torch.full((60,), 7.0)])
def test_probabilities_fall_with_the_loss(losses: torch.Tensor) -> None:
    found = probabilities(losses)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert bool((found[losses.argsort(stable=True)].diff() <= 0).all())


def test_half_of_each_class_and_what_the_model_predicts_is_never_doubted() -> None:
    labels = torch.tensor([0] * 40 + [1] * 17 + [2] * 3)
    generator = torch.Generator().manual_seed(0)
    z = 3 * F.one_hot(labels, 3) + torch.rand(60, 3, generator=generator)
    z[:10] = torch.tensor([0.0, 9.0, 0.0])  # a quarter of class 0
    z[-2:] = torch.tensor([9.0, 0.0, 0.0])  # two thirds of class 2
    model = subject("fixmatch").make(make_data()[0])
    model.net.classifier = nn.Identity()  # type: ignore[assignment]
    none = torch.zeros(0)
    seen = Evaluation(none, none, none, labeled_features=z, labeled_classes=labels)
    found = judged(model, seen)
    assert bool((found.clean[:10] < 0.01).all()) and bool((found.clean[10:57] == 1).all())
    assert found.clean[57:].tolist() == [1.0, 1.0, pytest.approx(0, abs=0.01)]
    torch.testing.assert_close(found.losses, F.cross_entropy(z, labels, reduction="none"))
    kept = lower_half(found.losses, labels)
    assert [int(kept[labels == k].sum()) for k in range(3)] == [20, 9, 2]


def test_doubted_images_count_for_as_much_as_they_are_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(label_filter, "FEWEST", 1)
    data, _ = make_data()
    for name in ("fixmatch", "supervised", "daso"):
        method: Any = subject(name).make(data, label_filter="mixture")
        method.label_filter.clean.copy_(torch.linspace(0, 1, len(data.labels)))
        plain = next(subject(name).make(data).batches(data, 3))
        batch = next(method.batches(data, 3))
        assert plain.masses is None and torch.equal(batch.x, plain.x)
        expected = method.label_filter.clean[batch.index_x]
        assert torch.equal(batch.target, expected[:, None] * F.one_hot(batch.y, 3))


@pytest.mark.parametrize("name", ["fixmatch", "supervised"])
def test_a_killed_training_goes_on_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some images are doubted by then, and what is thought of them is in the checkpoint."""
    monkeypatch.setattr(label_filter, "FEWEST", 1)
    data, _ = make_data()

    def make() -> Any:
        return subject(name).make(
            data, steps=24, evaluate_every=4, label_filter="mixture", keep="last"
        )

    whole = fit(make(), data, tmp_path / "whole").algorithm
    assert bool((cast(Any, whole).label_filter.clean < 1).any())

    class Killed(Exception):
        pass

    victim = make()
    forward = type(victim).forward

    def killed(self: Any, batch: Any, ctx: Any) -> Any:
        if ctx.step == 18:
            raise Killed
        return forward(self, batch, ctx)

    killed.weighs_labels = True  # type: ignore[attr-defined]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(type(victim), "forward", killed)
        fit(victim, data, tmp_path / "killed")
    fit(make(), data, tmp_path / "killed", resume=True)
    assert saved(tmp_path / "killed")["last.pt"] == saved(tmp_path / "whole")["last.pt"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fixmatch", {"label_filter": "mixture"}, r"needs 50 labeled images, not 11; leave it out"),
        ("crest", {"label_filter": "mixture"}, "which this method does not have; leave it out"),
        ("cossl", {"label_filter": "mixture"}, "which this method does not have; leave it out"),
        ("fixmatch", {"filter_from": 0.3}, r"filter_from=0\.3 does nothing with label_filter=none"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as told:
        subject(name).make(make_data()[0], **options)
    assert "\n" not in str(told.value)


def test_a_run_names_its_suspects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        *("train", "--algo", "supervised", "--dataset", str(STUDY), "model.name=cnn-4"),
        *("supervised.steps=20", "supervised.batch=16", "supervised.evaluate_every=10"),
        *("data.labeled.largest=10", "data.labeled.rho=1", "pictures=false", "data.flipped=0.2"),
        *("supervised.label_filter=mixture", "supervised.ema=0.9", "--out", "run"),
    ]
    assert cli.main(words) == 0
    with (tmp_path / "run/1-supervised/suspects.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows]
    assert rows and losses == sorted(losses, reverse=True)
    assert all(row["label"] != row["predicted"] for row in rows)
    text = (tmp_path / "run/1-supervised/metrics.jsonl").read_text()
    log = [json.loads(line) for line in text.splitlines()]
    told = [row for row in log if "labels_doubted" in str(row)]
    assert len(told) == 1
