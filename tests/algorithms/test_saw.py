"""SAW against recorded steps and weights of the published code, and its counts by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import cli, losses
from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.saw import SAW, smooth_weights
from ssl_selmix.methods.labeled import effective_number
from ssl_selmix.training import checkpoint
from tests.helpers.golden import (
    Recorded,
    Vectors,
    assert_reproduces,
    batch_of,
    cases,
    part,
    read,
    task_of,
)

RECORDED = read("saw.npz")
RUNS = ("K10.auto", "K10.beta099", "K3.auto")
# There is no ReMixMatch with these weights here.
EXCUSED = {"K10.remixmatch"}


def test_every_recorded_case_is_compared_or_excused() -> None:
    others = {"K10.weights", "K3.weights", "K10.stl_relabel"}
    assert cases(RECORDED) == {*RUNS, *others, *EXCUSED}


@pytest.mark.parametrize("case", ["K10.weights", "K3.weights"])
def test_weights_equal_the_published_ones(case: str) -> None:
    counts = part(RECORDED, case, "in")["counts"]
    means = counts[:4].double().mean(1, keepdim=True)
    numbers = [
        effective_number(n.clamp_min(1), (N - 1) / N) for n, N in zip(counts, means, strict=False)
    ]
    got = {
        "auto": torch.stack([smooth_weights(n, None) for n in counts[:4]]),
        "auto_not_normalised": 1 / torch.stack(numbers),
        "beta099": torch.stack([smooth_weights(n, 0.99) for n in counts]),
        "beta0999": torch.stack([smooth_weights(n, 0.999) for n in counts]),
    }
    assert_reproduces(RECORDED, case, got)


def test_pseudo_labels_of_weighted_probabilities() -> None:
    given = part(RECORDED, "K10.stl_relabel", "in")
    algorithm = make(10, relabel=True, threshold=float(given["threshold"]))
    algorithm.weights.copy_(given["weights_pool"])
    p = given["logits_u_w"].softmax(1)
    seen: list[Tensor] = []
    confidence = algorithm.confidence.forward

    def noted(p: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(p)
        return confidence(p, index)

    algorithm.confidence.forward = noted  # type: ignore[method-assign]
    pseudo, _ = algorithm.keep(p, batch_of([2, len(p)], torch.tensor([0, 1])))
    got = {"probs": seen[0], "confidence": seen[0].amax(1), "pseudo": pseudo}
    assert_reproduces(RECORDED, "K10.stl_relabel", got)
    assert torch.equal(algorithm.predicted, p.argmax(1))  # what is counted is not weighted


def make(k: int, num_unlabeled: int = 16, counts: Tensor | None = None, **options: Any) -> SAW:
    """The method on features that are logits, for the recorded numbers."""
    layer = nn.Linear(5, k, bias=False)
    net = Recorded(torch.zeros(1, 5), layer)
    task = task_of(torch.ones(k) if counts is None else counts, num_unlabeled=num_unlabeled)
    return SAW(net, task, SAW.Config(**{"steps": 6, "periods": 3, **options}))


@pytest.mark.parametrize("case", RUNS)
def test_a_run_equals_the_published_code(case: str) -> None:
    given = part(RECORDED, case, "in")
    const, total = float(given["const"]), len(given["y"])
    algorithm = make(
        *(len(given["labeled_counts"]), int(given["num_unlabeled"]), given["labeled_counts"]),
        periods=total // int(given["steps_per_epoch"]),
        weight_beta=None if const == 1 else const,
        unseen="shipped",
        threshold=float(given["threshold"]),
        lambda_u=float(given["lambda_u"]),
    ).train()
    layer = algorithm.net.classifier
    layer.weight.data.copy_(given["net_weight"])
    algorithm.net.rows.requires_grad_(False)
    mean, ema = layer.weight.detach().clone(), float(given["ema"])
    optimizer = torch.optim.Adam([layer.weight], lr=float(given["lr"]))
    rows: list[Vectors] = []
    for step in range(total):
        optimizer.zero_grad()
        got = step_of(algorithm, given, step)
        optimizer.step()
        mean = mean.lerp(layer.weight.detach(), 1 - ema)
        layer.weight.data.mul_(float(given["shrink"]))
        weights = algorithm.weights.clone()
        algorithm.after_step(Context(step + 1, total, algorithm))
        rows.append(
            {
                **{**got, "avg_weight": mean, "net_weight": layer.weight.detach().clone()},
                **{"weights_pool": weights, "pseudo_counts": algorithm.pool_counts()},
                "memory": algorithm.predicted.clamp_min(0),
            }
        )
    stacked = {name: torch.stack([row[name].detach() for row in rows]) for name in rows[0]}
    ends = slice(int(given["steps_per_epoch"]) - 1, None, int(given["steps_per_epoch"]))
    summed = torch.stack([stacked[name] for name in ("loss", "Lx", "Lu")], 1).double()
    stacked["mean_loss"] = summed.unflatten(0, (-1, int(given["steps_per_epoch"]))).mean(1)
    stacked["pseudo_counts"] = stacked["pseudo_counts"][ends]
    stacked["weights_pool_next"] = algorithm.weights
    # The table is kept as classes: its rows' arg-max is all that is ever used of it.
    table = part(RECORDED, case, "out")["memory"]
    assert torch.equal(stacked["memory"][ends], table.argmax(2))
    assert_reproduces(RECORDED, case, stacked, without=("memory",))


def step_of(algorithm: SAW, given: Vectors, step: int) -> Vectors:
    """Losses and gradients of a recorded step."""
    blocks = [given[name][step] for name in ("x", "u_weak", "u_s1", "u_s2")]
    algorithm.net.rows.data = torch.cat(blocks)
    logits: list[Tensor] = []

    def note(module: nn.Module, _: Any, out: Tensor) -> None:
        out.retain_grad()
        logits.append(out)

    handle = algorithm.net.classifier.register_forward_hook(note)
    plain = batch_of([len(block) for block in blocks], given["y"][step])
    batch = replace(plain, index_u=given["index_u"][step])
    found, logs = algorithm(batch, Context(step, algorithm.config.steps, algorithm))
    handle.remove()
    loss = torch.stack(list(found.values())).sum()
    loss.backward()
    (every,) = logits
    assert every.grad is not None
    x, weak, *strong = every.grad.split([len(block) for block in blocks])
    assert not weak.any()
    sizes = [len(block) for block in blocks]
    pseudo, mask = losses.pseudo_label(
        every.detach().split(sizes)[1].softmax(1), algorithm.config.threshold
    )
    torch.testing.assert_close(logs["mask_rate"], mask.mean())
    labeled_weights = algorithm.labeled_loss.weights
    assert labeled_weights is not None
    return {
        **{"Lx": found["labeled"], "Lu": found["unlabeled"], "loss": loss},
        **{"pseudo": pseudo, "mask": mask, "grad_logits": torch.cat([x, *strong])},
        "weights_labeled": labeled_weights,
    }


# By hand.


def test_images_count_once_they_are_drawn_with_their_latest_class() -> None:
    algorithm = make(3, num_unlabeled=6, threshold=0.9).train()
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]])
    batch = replace(batch_of([2, 3], torch.tensor([0, 1])), index_u=torch.tensor([4, 1, 4]))
    algorithm.keep(p, batch)
    assert algorithm.predicted.tolist() == [-1, 2, -1, -1, 1, -1]
    assert algorithm.pool_counts().tolist() == [0, 1, 1]
    algorithm.config.unseen = "shipped"
    assert algorithm.pool_counts().tolist() == [4, 1, 1]
    algorithm.eval().keep(p, replace(batch, index_u=torch.tensor([0, 0, 0])))
    assert int(algorithm.predicted[0]) == -1


def test_weights_move_at_the_end_of_a_period() -> None:
    algorithm = make(3, num_unlabeled=10, steps=9)
    algorithm.predicted.copy_(torch.tensor([0] * 7 + [1] * 2 + [2]))
    for step, moved in ((1, False), (2, False), (3, True)):
        algorithm.after_step(Context(step, 9, algorithm))
        assert (not torch.equal(algorithm.weights, torch.ones(3))) == moved
    n = (10 / 3) * (1 - 0.7 ** torch.tensor([7.0, 2.0, 1.0]))  # beta = 1 - 3/10
    torch.testing.assert_close(algorithm.weights, 3 * (1 / n) / (1 / n).sum())


def test_a_pool_that_nothing_is_known_of_has_equal_weights() -> None:
    for counts in (torch.zeros(3), torch.tensor([0.0, 1.0, 2.0])):
        weights = smooth_weights(counts, None)
        torch.testing.assert_close(weights, torch.ones(3).double())


def test_with_logit_adjustment_the_adjusted_loss_is_weighted() -> None:
    algorithm = make(3, counts=torch.tensor([6.0, 3.0, 1.0]), logit_adjustment=1.0)
    logits, y = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])
    w = smooth_weights(torch.tensor([6.0, 3.0, 1.0]), None).float()
    each = -(logits + torch.tensor([0.6, 0.3, 0.1]).log()).log_softmax(1)[[0, 1], y]
    torch.testing.assert_close(algorithm.labeled_loss(logits, y), (w[y] * each).mean())


@pytest.mark.slow
def test_selmix_and_offsets_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--algo", "saw", "saw.steps=20", "saw.ema=0.9", "saw.lr=0.1", "saw.batch=16"]
    words += ["--then", "selmix", "selmix.steps=4", "--then", "posthoc", "model.name=cnn-8"]
    assert cli.main([*words, "pictures=false", "--out", "run"]) == 0
    state = checkpoint.load(Path("run/1-saw/last.pt"))["algorithm"]
    assert int((state["predicted"] >= 0).sum()) > 100 and len(state["weights"].unique()) > 1
