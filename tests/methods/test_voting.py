"""Heads that vote: their mean is one layer, each learns as it would alone, votes are calibrated."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ssl_selmix.methods import discriminant
from ssl_selmix.methods.voting import VotingHeads

N, H, K, D = 40, 3, 4, 10


def made(share: float = 0.5, seed: int = 0) -> tuple[VotingHeads, nn.Linear, torch.Tensor]:
    torch.manual_seed(seed)
    start = nn.Linear(D, K)
    heads = VotingHeads(start, H, share)
    with torch.no_grad():
        heads.weight.add_(torch.randn_like(heads.weight))
        heads.bias.add_(torch.randn_like(heads.bias))
    return heads, start, torch.randn(N, D)


def test_each_head_sees_its_share_and_their_mean_is_one_layer() -> None:
    heads, _, x = made()
    assert ((heads.mask > 0).sum(1) == D // 2).all()
    assert not torch.equal(heads.mask[0], heads.mask[1])
    # What a head does not see makes no difference to it.
    other = x + 100 * (heads.mask[0] == 0)
    assert torch.allclose(heads(other)[:, 0], heads(x)[:, 0], atol=1e-4)
    assert (heads(other)[:, 1] - heads(x)[:, 1]).abs().max() > 1
    assert torch.allclose(F.linear(x, *heads.folded()), heads(x).mean(1), atol=1e-5)


def test_heads_start_at_the_layer_on_average() -> None:
    torch.manual_seed(0)
    start = nn.Linear(D, K)
    whole = VotingHeads(start, 2, 1.0)
    weight, bias = whole.folded()
    assert torch.allclose(weight, start.weight) and torch.allclose(bias, start.bias)
    mean, _ = VotingHeads(start, 4000, 0.3).folded()
    assert torch.allclose(mean, start.weight, atol=0.05)


def test_a_head_learns_as_it_would_alone() -> None:
    heads, _, x = made()
    y = torch.randint(K, (N,))
    F.cross_entropy(heads(x).flatten(0, 1), y.repeat_interleave(H)).backward()
    for h in range(H):
        alone = nn.Linear(D, K)
        with torch.no_grad():
            alone.weight.copy_(heads.weight.view(H, K, D)[h])
            alone.bias.copy_(heads.bias.view(H, K)[h])
        F.cross_entropy(alone(x * heads.mask[h]), y).backward()
        for own, ours in ((alone.weight, heads.weight), (alone.bias, heads.bias)):
            assert own.grad is not None and ours.grad is not None
            assert torch.allclose(ours.grad.view(H, *own.shape)[h], own.grad, atol=1e-6)


def test_the_body_learns_from_the_mean() -> None:
    heads, _, x = made()
    gradients = []
    for scores in (heads(x.requires_grad_()).mean(1), F.linear(x, *heads.folded())):
        gradients.append(torch.autograd.grad(scores.square().sum(), x)[0])
    assert torch.allclose(gradients[0], gradients[1], atol=1e-4)


def test_votes_are_the_mean_of_calibrated_probabilities() -> None:
    heads, _, x = made()
    y = heads(x)[:, 0].argmax(1)
    y[::3] = torch.arange(len(y[::3])) % K
    heads.calibrate(x, y)
    for h in range(H):
        wanted = discriminant.temperature(heads(x)[:, h].detach(), y)
        assert abs(float(heads.temperature[h]) / wanted - 1) < 1e-6
    assert len(heads.temperature.unique()) == H
    by_hand = sum(
        (heads(x)[:, h].detach().double() / heads.temperature[h]).softmax(1) for h in range(H)
    )
    assert torch.allclose(heads.votes(x), by_hand / H)
