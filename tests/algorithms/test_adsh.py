"""ADSH against recorded steps and updates of the published code, and its thresholds by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_selmix import cli
from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.adsh import ADSH
from ssl_selmix.contract import subjects
from ssl_selmix.data.batch import Task
from ssl_selmix.training import checkpoint
from tests.helpers.golden import Vectors, assert_reproduces, batch_of, cases, part, read, run_step

RECORDED = read("adsh.npz")
STEPS = ("K10.steps", "K3.steps")
POOLS = ("K10.rounds", "K3.rounds", "K3.tail_never_predicted", "K3.half_ranks")
# Nothing taken for the head class is sure: the published code lets all others pass.
UNSURE = ("K3.no_confident_head", "K3.head_never_predicted")


def test_every_recorded_case_is_compared() -> None:
    assert cases(RECORDED) == {*STEPS, *POOLS, *UNSURE}


def make(counts: list[float], **options: Any) -> ADSH:
    data, _ = subjects.make_data(len(counts))
    task = Task(tuple("abcdefghij"[: len(counts)]), torch.tensor(counts).double(), 10, 10)
    return ADSH(subjects.make_net(data), task, ADSH.Config(**{"steps": 100, **options}))


@pytest.mark.parametrize("case", STEPS)
def test_a_step_equals_the_published_code(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = part(RECORDED, case, "in")
    settings = {name: float(given[name]) for name in ("threshold", "lambda_u")}
    original, got = ADSH.__init__, []
    for step, score in enumerate(given["score"]):

        def with_scores(self: ADSH, *words: Any, score: Tensor = score) -> None:
            original(self, *words)
            self.thresholds.copy_(score)

        monkeypatch.setattr(ADSH, "__init__", with_scores)
        blocks = {name: given[name][step] for name in given if given[name].ndim > 1}
        algorithm, found = run_step("adsh", blocks, **settings)
        assert isinstance(algorithm, ADSH)
        p = blocks["logits_u_w"].softmax(1)
        pseudo, mask = algorithm.keep(p, batch_of([2, 16], torch.tensor([0, 1])))
        torch.testing.assert_close(found["mask_rate"], mask.mean())
        found |= {"loss_x": found["labeled"], "loss_u": found["unlabeled"] / settings["lambda_u"]}
        found |= {"rectified": p / algorithm.thresholds, "plain_argmax": p.argmax(1)}
        got.append(found | {"mask": mask, "pseudo": pseudo})
    assert_reproduces(RECORDED, case, {k: torch.stack([g[k] for g in got]) for k in got[0]})


@pytest.mark.parametrize("case", [*POOLS, *UNSURE])
def test_thresholds_follow_the_pool_as_published(case: str) -> None:
    given = part(RECORDED, case, "in")
    k = len(given["score0"])
    algorithm = make(
        [9.0, *[1.0] * (k - 1)], threshold=float(given["threshold"]), unsure_head="shipped"
    )
    algorithm.thresholds.copy_(given["score0"])
    rounds: list[Vectors] = []
    for logits in given["logits"]:
        rho = algorithm.follow(logits.softmax(1))
        if case in UNSURE:
            assert float(rho) == 1
        rounds.append({"rho": rho, "score": algorithm.thresholds.clone()})
    got = {name: torch.stack([r[name] for r in rounds]) for name in rounds[0]}
    assert_reproduces(RECORDED, case, got)


# By hand.

POOL = torch.tensor(
    [
        *[
            [0.97, 0.02, 0.01],
            [0.9, 0.05, 0.05],
            [0.6, 0.3, 0.1],
            [0.5, 0.4, 0.1],
        ],  # 1 of 4 is sure
        *[[0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.1, 0.85, 0.05]],
    ]
)


def test_every_class_lets_the_share_of_the_head_pass() -> None:
    algorithm = make([9.0, 3.0, 1.0])
    assert float(algorithm.follow(POOL)) == 0.25
    # Rank 4 / 4 - 1 = 0, the surest; the last class is never predicted and keeps its threshold.
    torch.testing.assert_close(algorithm.thresholds, torch.tensor([0.95, 0.85, 0.95]))
    classes, mask = algorithm.keep(POOL, batch_of([2, 8], torch.tensor([0, 1])))
    assert mask.tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
    algorithm.thresholds.copy_(torch.tensor([0.95, 0.3, 0.95]))
    classes, mask = algorithm.keep(POOL, batch_of([2, 8], torch.tensor([0, 1])))
    assert classes.tolist()[2:4] == [1, 1] and mask.tolist()[2:4] == [1, 1]  # though 0 is likelier


def test_the_head_is_the_class_with_most_labels() -> None:
    algorithm = make([1.0, 3.0, 9.0])
    algorithm.follow(POOL[:, [2, 1, 0]])
    torch.testing.assert_close(algorithm.thresholds, torch.tensor([0.95, 0.85, 0.95]))


@pytest.mark.parametrize(("kind", "least"), [("strict", 0.85), ("shipped", 0.6)])
def test_an_unsure_head_lets_the_surest_or_all_pass(kind: str, least: float) -> None:
    for rows in (POOL[1:], POOL[4:]):  # none is sure; none is taken for the head
        algorithm = make([9.0, 3.0, 1.0], unsure_head=kind)
        algorithm.follow(rows)
        torch.testing.assert_close(algorithm.thresholds, torch.tensor([0.95, least, 0.95]))


@pytest.mark.parametrize(("steps", "first"), [(2**18, 1024), (2000, 512)])
def test_the_published_schedule(steps: int, first: int) -> None:
    algorithm = make([9.0, 1.0], steps=steps)
    looks = [step for step in range(0, 5000) if algorithm.look_due(step)]
    assert looks == list(range(first, 5000, 512))
    assert all(algorithm.evaluation_due(step) and algorithm.needs_pool(step) for step in looks)
    assert not algorithm.needs_pool(500) and algorithm.evaluation_due(500)


def test_thresholds_are_found_under_the_pools_prior() -> None:
    settings = {"prior": "given", "prior_given": [1.0, 2.0, 5.0], "temperature": 2.0}
    algorithm = make([9.0, 3.0, 1.0], threshold=0.5, **settings, threshold_every=50)
    pool = 3 * torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    evaluation: Any = type("E", (), {"pool_logits": pool})
    found = algorithm.on_validation(evaluation, Context(50, 100, algorithm))
    other = make([9.0, 3.0, 1.0], threshold=0.5)
    prior = torch.tensor([1, 2, 5]) / torch.tensor([9, 3, 1])
    assert found["head_share"] == other.follow(((pool + prior.log()) / 2).softmax(1))
    torch.testing.assert_close(found["thresholds"], other.thresholds)


@pytest.mark.slow
def test_selmix_and_offsets_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--algo", "adsh", "adsh.steps=20", "adsh.threshold_every=10", "adsh.threshold=0.6"]
    words += ["adsh.ema=0.9", "adsh.lr=0.1", "adsh.batch=16", "--then", "selmix", "selmix.steps=4"]
    words += ["--then", "posthoc", "model.name=cnn-8", "pictures=false", "--out", "run"]
    assert cli.main(words) == 0
    state = checkpoint.load(Path("run/1-adsh/last.pt"))["algorithm"]
    assert float(state["thresholds"][0]) == pytest.approx(0.6)
    assert len(state["thresholds"].unique()) > 1
