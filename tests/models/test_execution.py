"""How a network computes is one value, which copies take with them, but for what trains them."""

import copy
import dataclasses

import pytest
import torch

from ssl_selmix.common.processes import World
from ssl_selmix.contract import subjects
from ssl_selmix.models import Classifier
from ssl_selmix.models.execution import Execution


@pytest.fixture
def net() -> Classifier:
    return subjects.make_net(subjects.make_data()[0])


def test_a_network_is_prepared_in_place_and_its_names_stay(net: Classifier) -> None:
    names = list(net.state_dict())
    how = Execution("bf16", "lazy", World(0, 2), compiled=True)
    assert net.prepared(how, torch.device("cpu")) is net
    assert net.execution is how and how.dtype is torch.bfloat16
    assert list(net.state_dict()) == names
    weight = net.backbone[3].weight  # type: ignore[index]
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_features_are_float32_in_every_precision(net: Classifier) -> None:
    x = torch.ones(2, 1, 8, 8)
    exact = net.eval()(x)
    rounded = net.prepared(Execution("bf16"))(x)
    assert rounded.dtype is net.features(x).dtype is torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)


def test_a_runner_trains_in_the_place_of_the_body_and_copies_have_none(net: Classifier) -> None:
    how = Execution("fp32", "split", compiled=True)
    net.prepared(how)
    x, calls = torch.ones(2, 1, 8, 8), []

    def runner(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return torch.zeros(len(images), 8)

    with pytest.raises(ZeroDivisionError), net.trained_by(runner):
        assert not net.train().features(x).any() and calls == [2]
        assert net.eval().features(x).any() and calls == [2]  # the body evaluates
        assert net.execution == dataclasses.replace(how, runner=runner)
        assert copy.deepcopy(net).execution == how  # as a teacher is
        raise ZeroDivisionError
    assert net.execution is how
