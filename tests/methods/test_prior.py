"""The pool's class prior as state of an algorithm."""

import pytest
import torch
from torch import Tensor

from ssl_selmix.algorithm import Evaluation, Task
from ssl_selmix.algorithms.fixmatch import FixMatch
from ssl_selmix.methods.pool_prior import FLOOR, PoolPrior
from tests.helpers.golden import Recorded, linear

TASK = Task(("a", "b", "c"), torch.tensor([6.0, 3.0, 1.0]).double(), 300, 90)


def make(**settings: object) -> PoolPrior:
    return PoolPrior(TASK, PoolPrior.Config(**settings))  # type: ignore[arg-type]


def evaluation(pool_counts: list[int], sharpness: float = 4.0) -> Evaluation:
    """Noisy logits of 30 held-out images per class, and of a pool with these counts."""
    generator = torch.Generator().manual_seed(0)

    def logits(labels: Tensor) -> Tensor:
        noise = torch.randn(len(labels), 3, generator=generator, dtype=torch.float64)
        return noise + sharpness * torch.nn.functional.one_hot(labels, 3)

    labels = torch.arange(3).repeat_interleave(30)
    pool = torch.arange(3).repeat_interleave(torch.tensor(pool_counts))
    return Evaluation(torch.zeros(90, 1), logits(labels), labels, logits(pool))


def test_an_estimate_finds_the_distribution_and_its_interval_holds_it() -> None:
    prior = make(prior="estimated")
    logs = prior.estimate(evaluation([200, 80, 20]))
    truth = torch.tensor([200.0, 80, 20]).double() / 300
    assert float((prior.q - truth).abs().sum()) < 0.1
    assert (logs["estimated_prior_low"] <= truth).all()
    assert (logs["estimated_prior_high"] >= truth).all()
    assert float(logs["prior_trusted"]) == 1 and int(prior.estimates) == 1


def test_an_estimate_that_fell_back_to_counting_is_not_used() -> None:
    prior = make(prior="estimated")
    before = prior.q.clone()
    found = evaluation([200, 80, 20])
    found.logits[:, 2] = -50.0  # class c is never predicted on validation images
    logs = prior.estimate(found)
    assert float(logs["prior_trusted"]) == 0 and int(prior.estimates) == 0
    assert torch.equal(prior.q, before)


def test_an_absent_class_keeps_a_share() -> None:
    prior = make(prior="estimated")
    prior.estimate(evaluation([250, 50, 0], sharpness=30.0))
    assert float(prior.q[2]) == pytest.approx(FLOOR / 3, rel=0.05)
    assert float(prior.q.sum()) == pytest.approx(1)


def test_where_q_starts() -> None:
    assert make().q.tolist() == pytest.approx([1 / 3] * 3) and not make().used
    assert make(prior="labeled").q.tolist() == pytest.approx([0.6, 0.3, 0.1])
    given = make(prior="given", prior_given=[1.0, 1.0, 2.0])
    assert given.q.tolist() == pytest.approx([0.25, 0.25, 0.5]) and given.used


@pytest.mark.parametrize("shares", [[], [1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 2.0, float("nan")]])
def test_given_shares_must_be_one_positive_number_per_class(shares: list[float]) -> None:
    with pytest.raises(ValueError, match=r"needs 3 positive numbers in prior_given, not \["):
        make(prior="given", prior_given=shares)


def test_without_an_estimate_nothing_is_shifted() -> None:
    config = FixMatch.Config(logit_adjustment=0.0, prior="estimated")
    net = Recorded(torch.zeros(1, 3), linear(torch.eye(3), torch.zeros(3)))
    algorithm, logits = FixMatch(net, TASK, config), torch.tensor([[1.0, 2.0, 3.0]])
    assert torch.equal(algorithm.of_pool(logits), logits)
    algorithm.pool_prior.estimate(evaluation([200, 80, 20]))
    assert not torch.equal(algorithm.of_pool(logits), logits)


def test_shares_without_prior_given_are_refused() -> None:
    with pytest.raises(ValueError, match="no meaning with prior=none; set prior=given"):
        make(prior_given=[1.0, 1.0, 1.0])


def test_estimates_are_due_every_so_many_steps_and_not_at_the_start() -> None:
    prior = make(prior="estimated", prior_every=4)
    assert [step for step in range(13) if prior.due(step)] == [4, 8, 12]
    assert not any(make(prior="labeled", prior_every=4).due(step) for step in range(13))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_logits_of_the_pool_follow_its_prior(tau: float) -> None:
    """The labeled loss is least where logits + tau log pi are the labeled log-posterior."""
    q = torch.tensor([0.2, 0.3, 0.5])
    config = FixMatch.Config(logit_adjustment=tau, prior="given", prior_given=q.tolist())
    likelihood = torch.tensor([[0.5, 0.2, 0.1]])
    pi = TASK.labeled_prior.float()
    net = Recorded(torch.zeros(1, 3), linear(torch.eye(3), torch.zeros(3)))
    algorithm = FixMatch(net, TASK, config)
    logits = (likelihood * pi).log() - tau * pi.log()
    expected = (likelihood * q) / (likelihood * q).sum()
    torch.testing.assert_close(algorithm.of_pool(logits).softmax(1), expected)
    assert torch.equal(FixMatch(net, TASK, FixMatch.Config()).of_pool(logits), logits)
