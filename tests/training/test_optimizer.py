"""The optimizer takes torch's steps and keeps torch's state, without torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from ssl_selmix.training.optimizer import SGD


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_and_state_are_those_of_torch(momentum: float) -> None:
    nets = [network(), network()]
    found: list[torch.optim.Optimizer] = []
    for net, kind in zip(nets, (SGD, torch.optim.SGD), strict=True):
        groups = [
            {"params": [*net[0].parameters()], "lr_scale": 1.0},
            {"params": [*net[2].parameters()], "weight_decay": 0.0, "lr_scale": 2.0},
        ]
        nesterov = momentum > 0
        found.append(kind(groups, lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=1e-2))
    for step in range(3):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for net, optimizer in zip(nets, found, strict=True):
            optimizer.zero_grad(set_to_none=True)
            net(x).square().sum().backward()
            optimizer.step()
            if step == 1:  # as a resumed stage does
                optimizer.load_state_dict(optimizer.state_dict())
    ours, theirs = (optimizer.state_dict() for optimizer in found)
    assert ours["param_groups"] == theirs["param_groups"] and ours.keys() == theirs.keys()
    assert ours["state"].keys() == theirs["state"].keys()
    assert len(ours["state"]) == (4 if momentum else 0)
    for own, other in zip(ours["state"].values(), theirs["state"].values(), strict=True):
        assert own.keys() == other.keys()
        assert all(torch.equal(own[k], other[k]) for k in own if own[k] is not None)
    for own, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(own, other)


STEP = """
import sys, torch
from ssl_selmix.models import Config, build
from ssl_selmix.training.machine import flops_per_step
from ssl_selmix.training.optimizer import SGD
net = build(Config("cnn-4"), 3, 1)
assert flops_per_step(net, (1, 8, 8), 1) > 0
optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
optimizer.zero_grad()
net(torch.zeros(2, 1, 8, 8)).sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
print([name for name in ("torch._dynamo", "sympy", "sklearn", "scipy") if name in sys.modules])
"""


def test_training_does_not_import_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
