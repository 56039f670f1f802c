"""The curriculum of the unlabeled batch: its curve, its draws, and a run that is resumed."""

from pathlib import Path

import pytest
import torch

from ssl_selmix import contract
from ssl_selmix.algorithm import Algorithm
from ssl_selmix.common import config
from ssl_selmix.contract.subjects import make_data
from ssl_selmix.runs.plan import Plan, Request
from tests.helpers.killed import checkpoints_of_killed_and_whole

Config = Algorithm.PoolConfig


def test_the_curve_is_the_bounded_exponential() -> None:
    curve = Config(mu=701, mu_from=1)
    for t in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        rise = 1 - (1 - t) / ((1 - 0.7) + 0.7 * (1 - t))
        assert curve.mu_at(t) == round(1 + 700 * rise)
    sizes = [Config(mu=7, mu_from=1).mu_at(t / 10) for t in range(11)]
    assert sizes == [1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 7]
    assert [Config(mu=7).mu_at(t) for t in (0, 0.5, 1)] == [7, 7, 7]
    assert Config(mu=7, mu_from=7).mu_at(0.3) == 7
    assert Config(mu=7, mu_from=1).mean_mu == pytest.approx(1 + 6 * 0.3085, abs=0.1)


def test_a_beginning_above_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mu_from=3 is to rise to mu=2; set a smaller one, or"):
        Config(mu=2, mu_from=3)


def test_labeled_images_and_the_first_of_the_pool_are_those_without() -> None:
    data, _ = make_data()
    plain = data.batches(("weak", "strong"), 4, 3, 2)
    rising = data.batches(("weak", "strong"), 4, lambda step: step, 2)
    for step, (one, other) in enumerate(zip(plain, rising, strict=False), 2):
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)
        assert len(other.index_u) == 4 * step
        if step == 3:
            assert torch.equal(one.index_u, other.index_u)
            break


def test_throughput_counts_the_mean() -> None:
    data, _ = make_data()
    fixmatch, mean = contract.subject("fixmatch"), Config(mu=7, mu_from=1).mean_mu
    assert fixmatch.make(data, mu=7).images_per_step == 4 * (1 + 7 * 2)
    rising = fixmatch.make(data, mu=7, mu_from=1)
    assert rising.images_per_step == round(4 * (1 + mean * 2)) < 30


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    rising = contract.subject("fixmatch", mu=5, mu_from=1, threshold=0.0)
    killed, whole = checkpoints_of_killed_and_whole(rising, tmp_path)
    assert killed == whole and killed


def test_runs_without_it_record_what_older_runs_recorded() -> None:
    plain = Plan(Request(["fixmatch"], "digits", "none"))
    rising = Plan(Request(["fixmatch"], "digits", "none", settings=["fixmatch.mu_from=1"]))
    assert "fixmatch.mu_from" not in config.flatten(plain.identity())
    assert config.flatten(rising.identity())["fixmatch.mu_from"] == 1


def test_a_method_that_counts_on_one_number_refuses_it() -> None:
    data, _ = make_data()
    with pytest.raises(ValueError, match=r"^mu_from=1 cannot act, for this method counts on"):
        contract.subject("simpro").make(data, mu_from=1)
