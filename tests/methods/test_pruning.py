"""Images left out of a step: the gradient's expectation, what is counted, what is refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from ssl_selmix import contract
from ssl_selmix.algorithm import Batch, Context
from ssl_selmix.algorithms.ride import RIDE
from ssl_selmix.algorithms.supervised import Supervised
from ssl_selmix.common import config
from ssl_selmix.contract.step import check_gradients
from ssl_selmix.contract.subjects import fit, make_data, make_net
from ssl_selmix.methods import pruning
from ssl_selmix.models.batch_norm import batch_norms
from ssl_selmix.models.execution import Execution
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.training.log import SilentLog, StageLog
from tests.helpers.killed import checkpoints_of_killed_and_whole

RATE = 0.3


def made(**settings: Any) -> tuple[Supervised, Batch, Context]:
    """Supervised learning with pruning on the contract's images; norms as when it predicts."""
    data, _ = make_data()
    torch.manual_seed(0)
    given = {"batch": 5, "prune": RATE} | settings
    algorithm = Supervised(make_net(data), data.task, Supervised.Config(**given))
    for norm in batch_norms(algorithm.train().net):
        norm.eval()  # batch statistics are those of the images that pass
    return algorithm, next(algorithm.batches(data, 0)), Context(0, 4, algorithm)


def gradient(algorithm: Supervised, batch: Batch, ctx: Context) -> Tensor:
    losses, _ = algorithm(batch, ctx)
    algorithm.zero_grad()
    losses["labeled"].backward()
    found = [p.grad for p in algorithm.parameters() if p.requires_grad]
    return torch.cat([torch.zeros(0) if g is None else g.flatten() for g in found]).double()


@pytest.mark.parametrize("low", [[1, 4], [0, 1, 2, 3], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize(
    "settings", [{}, {"reweight": "inverse", "loss": "focal"}, {"reweight": "inverse", "drw": 0.9}]
)
def test_the_expected_gradient_is_that_of_the_whole_batch(
    low: list[int], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sum over all decisions of their probability times the gradient, exact."""
    algorithm, batch, ctx = made(**settings)
    full = gradient(made(**settings, prune=0.0)[0], batch, ctx)
    assert algorithm.pruning is not None and batch.index_x is not None
    index = torch.arange(5)  # five different images, of which those in `low` are learned already
    batch = Batch(batch.x, batch.y, batch.u, batch.index_u, index_x=index)
    last = torch.full_like(algorithm.pruning.last, 9.0)
    last[low] = 0.5
    expected = torch.zeros_like(full)
    for decision in itertools.product((True, False), repeat=5):
        out = torch.tensor(decision)
        probability = torch.where(out, RATE, 1 - RATE).double().prod()
        algorithm.pruning.last.copy_(last)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "rand", lambda num, out=out: torch.where(out, 0.0, 1.0))
            expected += probability * gradient(algorithm, batch, ctx)
    torch.testing.assert_close(expected, full, rtol=1e-5, atol=1e-7)


def test_the_decisions_are_drawn_with_the_rate_and_low_images_weigh_more() -> None:
    kept = pruning.Pruning(4, pruning.Config(prune=0.25))
    kept.last.copy_(torch.tensor([0.1, 0.2, 3.0, pruning.UNSEEN]))  # mean 1.1
    index = torch.arange(4).repeat(2000)
    torch.manual_seed(0)
    rows, factors = kept.choose(index, 0.0)
    passed = torch.bincount(index[rows], minlength=4) / 2000
    assert passed[2:].tolist() == [1, 1] and passed[:2].tolist() == pytest.approx(
        [0.75] * 2, abs=0.03
    )
    assert torch.allclose(factors, torch.tensor([4 / 3, 4 / 3, 1, 1])[index[rows]])
    assert torch.equal(rows, rows.sort().values)


def test_no_image_is_left_out_before_it_was_seen_and_after_the_end() -> None:
    kept = pruning.Pruning(3, pruning.Config(prune=0.9, prune_until=0.5))
    index = torch.arange(3).repeat(50)
    assert len(kept.choose(index, 0.0)[0]) == 150
    kept.remember(torch.tensor([0, 1, 1, 2]), torch.tensor([0.1, 0.2, 0.3, 9.0]))
    assert kept.last.tolist() == pytest.approx([0.1, 0.3, 9.0])  # the larger of two
    assert len(kept.choose(index, 0.49)[0]) < 100
    rows, factors = kept.choose(index, 0.5)
    assert len(rows) == 150 and bool((factors == 1).all())


def test_two_images_pass_always_and_count_nothing_if_they_were_left_out() -> None:
    kept = pruning.Pruning(3, pruning.Config(prune=0.999999))
    kept.last.copy_(torch.tensor([0.1, 0.1, 5.0]))
    rows, factors = kept.choose(torch.tensor([0, 1, 0]), 0.0)
    assert (rows.tolist(), factors.tolist()) == ([0, 1], [0, 0])
    rows, factors = kept.choose(torch.tensor([0, 2, 0]), 0.0)
    assert (rows.tolist(), factors.tolist()) == ([0, 1], [0, 1])


def test_what_a_killed_run_ends_with(tmp_path: Path) -> None:
    subject = contract.subject("supervised", prune=0.7, prune_until=1.0)
    killed, whole = checkpoints_of_killed_and_whole(subject, tmp_path)
    assert killed == whole and killed
    check_gradients(subject, tmp_path)


def test_images_are_counted_as_they_pass(tmp_path: Path) -> None:
    data, _ = make_data()
    subject, log = contract.subject("supervised", prune=0.7, prune_until=0.5), SilentLog(keep=True)
    algorithm = subject.make(data, steps=40, batch=8, evaluate_every=20)
    fit(algorithm, data, tmp_path, log=log)
    first, last = (log.trained[i][1]["images"] for i in (0, -1))
    assert 2 <= first < 8 and last == 8
    told = StageLog(tmp_path, "1", (), Console(quiet=True), 100)
    told.training(25, {"loss": 1.0, "images": 5.0})
    told.training(50, {"loss": 1.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    ratios = [row["images_per_second"] / row["steps_per_second"] for row in rows]
    assert ratios == pytest.approx([5, 100])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune": 1.0}, r"prune must .*\[0, 1\)"),
        ({"prune_until": 0.5}, "prune_until=0.5 ends nothing with prune=0; set prune=0.5"),
        ({"prune": 0.5, "sam": "sam"}, "prune=0.5 leaves images out of a step, whose losses sam"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Supervised.Config(**settings)


def test_experts_have_several_losses() -> None:
    with pytest.raises(ValueError, match=r"prune=0\.5 leaves images out by one loss"):
        RIDE.Config(prune=0.5)


def test_networks_of_one_batch_size_are_refused() -> None:
    data, _ = make_data()
    net = make_net(data).prepared(Execution(compiled=True))
    with pytest.raises(ValueError, match="prune does not go with compile=true"):
        Supervised(net, data.task, Supervised.Config(prune=0.5))


def test_runs_without_it_record_what_older_runs_recorded() -> None:
    plain = config.flatten(Plan(Request(["supervised"], "digits", "none")).identity())
    assert not [key for key in plain if "prune" in key]
    data, _ = make_data()
    assert not [
        key for key in contract.subject("supervised").make(data).state_dict() if "last" in key
    ]
