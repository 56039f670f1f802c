"""Sharpness-aware minimisation beside a network whose weights were really moved."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix import contract
from ssl_selmix.algorithm import Batch, Context
from ssl_selmix.algorithms.supervised import Supervised
from ssl_selmix.common import config
from ssl_selmix.contract.step import check_frozen, check_gradients
from ssl_selmix.contract.subjects import make_data, make_net
from ssl_selmix.methods import sharpness
from ssl_selmix.models.batch_norm import batch_norms
from ssl_selmix.models.execution import Execution
from ssl_selmix.runs.plan import Plan, Request
from tests.helpers.killed import checkpoints_of_killed_and_whole


def made(**settings: Any) -> tuple[Supervised, Batch, Context]:
    """Supervised learning on the contract's images, 6, 3 and 2 labeled ones a class."""
    data, _ = make_data()
    torch.manual_seed(0)
    algorithm = Supervised(make_net(data), data.task, Supervised.Config(batch=8, **settings))
    batch = next(algorithm.train().batches(data, 0))
    return algorithm, batch, Context(0, 4, algorithm)


def gradients(algorithm: Supervised, batch: Batch, ctx: Context) -> dict[str, Tensor]:
    losses, _ = algorithm(batch, ctx)
    algorithm.zero_grad()
    losses["labeled"].backward()
    return {name: p.grad.clone() for name, p in algorithm.named_parameters() if p.grad is not None}


def moved_by_hand(algorithm: Supervised, batch: Batch, kind: str, rho: float) -> Supervised:
    """A copy whose weights are where the loss of the batch is larger."""
    other = copy.deepcopy(algorithm)
    loss = F.cross_entropy(other.net(batch.x) + other.loss.tau * other.loss.log_pi, batch.y)
    named = dict(other.named_parameters())
    found = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    sizes = {
        name: p.detach().abs() + 0.01
        if kind == "asam" and name.endswith("weight")
        else torch.ones_like(p)
        for name, p in named.items()
    }
    norm = sum(float((sizes[k] * g).double().square().sum()) for k, g in found.items()) ** 0.5
    with torch.no_grad():
        for name, p in named.items():
            p.add_(rho * sizes[name] ** 2 * found[name] / norm)
    return other


@pytest.mark.parametrize(("kind", "rho"), [("sam", 0.05), ("asam", 0.5), ("sam", 2.0)])
def test_the_gradient_is_that_at_moved_weights(kind: str, rho: float) -> None:
    algorithm, batch, ctx = made(sam=kind, sam_radius=rho)
    by_hand = moved_by_hand(algorithm, batch, kind, rho)
    by_hand.config.sam = "none"
    expected = gradients(by_hand, batch, ctx)
    found = gradients(algorithm, batch, ctx)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_radii_are_those_of_the_papers() -> None:
    assert sharpness.Config(sam="sam").radius == 0.05
    assert sharpness.Config(sam="asam").radius == 0.5
    assert sharpness.Config(sam="sam", sam_radius=0.8).radius == 0.8


def test_only_rare_classes_see_moved_weights() -> None:
    """L_head(w) + L_tail(w + rho g_tail / |g_tail|), as ImbSAM."""
    algorithm, batch, ctx = made(sam="sam", sam_radius=0.3, sam_below=6, logit_adjustment=0.0)
    rare = batch.y > 0  # of 3 and 2 labeled images
    assert 0 < int(rare.sum()) < len(rare)

    def part(model: Supervised, rows: Tensor) -> Tensor:
        each = F.cross_entropy(model.net(batch.x), batch.y, reduction="none")
        return each[rows].sum() / len(each)

    other = copy.deepcopy(algorithm)
    named = dict(other.named_parameters())
    g = torch.autograd.grad(part(other, rare), list(named.values()))
    norm = torch.stack([x.square().sum() for x in g]).sum().sqrt()
    away = copy.deepcopy(algorithm)
    with torch.no_grad():
        for p, x in zip(away.parameters(), g, strict=True):
            p.add_(0.3 * x / norm)
    tail = torch.autograd.grad(part(away, rare), list(away.parameters()))
    head = torch.autograd.grad(part(other, ~rare), list(other.parameters()))
    found = gradients(algorithm, batch, ctx)
    for name, one, two in zip(named, head, tail, strict=True):
        torch.testing.assert_close(found[name], one + two, rtol=1e-4, atol=1e-6)


def test_shares_of_images_add_up_to_the_loss() -> None:
    cases: list[dict[str, Any]] = [{}, {"reweight": "effective"}]
    cases += [{"loss": "focal", "reweight": "inverse", "drw": 0.5}]
    for settings in cases:
        algorithm, batch, _ = made(**settings)
        logits = algorithm.net(batch.x)
        for progress in (0.0, 0.9):
            shares = algorithm.loss.shares(logits, batch.y, progress)
            whole = algorithm.loss(logits, batch.y, progress)
            torch.testing.assert_close(shares.sum(), whole)


@pytest.mark.parametrize("loss", ["ce", "ldam"])
def test_buffers_are_those_of_one_pass(loss: str) -> None:
    plain, batch, ctx = made(loss=loss)
    moving, _, _ = made(loss=loss, sam="sam", sam_radius=1.0)
    for algorithm in (plain, moving):
        gradients(algorithm, batch, ctx)
    found = dict(moving.named_buffers())
    assert list(batch_norms(moving.net)) and len(found) > 6
    for name, buffer in plain.named_buffers():
        assert torch.equal(found[name], buffer), name


def test_a_loss_without_a_gradient_moves_nothing() -> None:
    layer = nn.Linear(2, 2)
    parameters = dict(layer.named_parameters())
    loss = (layer(torch.ones(1, 2)) * 0).sum()
    found = sharpness.moves(loss, parameters, sharpness.Config(sam="sam"), keep_graph=False)
    assert all(not bool(move.any()) for move in found.values())


def test_what_cannot_be_is_refused() -> None:
    for wrong in ({"sam_radius": 0.1}, {"sam_below": 5}):
        with pytest.raises(ValueError, match=r"moves no weights with sam=none; set sam=sam, too"):
            Supervised.Config(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sam_below=2 moves weights for no class, for each has 2"):
        made(sam="sam", sam_below=2)
    for how, told in (
        (Execution(compiled=True), "compile=true; set compile=false"),
        (Execution(precision="fp16"), "precision=fp16; set precision=bf16"),
    ):
        algorithm, batch, ctx = made(sam="sam")
        algorithm.net.execution = how
        with pytest.raises(ValueError, match=f"^sam does not go with {told}"):
            algorithm(batch, ctx)


@pytest.mark.parametrize("settings", [{"sam": "sam", "sam_below": 4}, {"sam": "asam"}])
def test_the_contract_is_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    subject = contract.subject("supervised", **settings)
    for check in (check_gradients, check_frozen):
        check(subject, tmp_path / check.__name__)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    killed, whole = checkpoints_of_killed_and_whole(
        contract.subject("supervised", sam="sam"), tmp_path
    )
    assert killed == whole and killed


def test_runs_without_it_record_what_older_runs_recorded() -> None:
    plain = config.flatten(Plan(Request(["supervised"], "digits", "none")).identity())
    assert not [key for key in plain if ".sam" in key]
    moving = Plan(Request(["supervised"], "digits", "none", settings=["supervised.sam=asam"]))
    assert config.flatten(moving.identity())["supervised.sam"] == "asam"
    data, _ = make_data()
    subject = contract.subject("supervised")
    assert subject.make(data, sam="sam").images_per_step == 2 * subject.make(data).images_per_step
