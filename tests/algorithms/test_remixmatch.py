"""ReMixMatch, alone and with DASO, ABC and DARP, against numbers that were worked out by hand.

No published run of it is recorded. The networks here return the pixels of an image as features,
and the first three of them as logits, so that mixing and rotating can be followed with a pencil.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_selmix.algorithm import Batch, Context, load
from ssl_selmix.algorithms.remixmatch import ReMixMatch
from ssl_selmix.algorithms.remixmatch_abc import ReMixMatchABC
from ssl_selmix.algorithms.remixmatch_darp import ReMixMatchDARP
from ssl_selmix.algorithms.remixmatch_daso import ReMixMatchDASO
from ssl_selmix.methods import remixmatch
from ssl_selmix.models import Classifier
from tests.helpers.gaussians import recalls
from tests.helpers.golden import Given, linear, task_of

NAMES = ["remixmatch", "remixmatch_abc", "remixmatch_darp", "remixmatch_daso"]
COUNTS = torch.tensor([6.0, 3.0, 1.0])


def picture(*pixels: float) -> Tensor:
    """One image of 2×2 pixels, row by row."""
    return torch.tensor(pixels, dtype=torch.float32).reshape(1, 1, 2, 2)


X = picture(1, 0, 0, 0)
WEAK = picture(math.log(0.5), math.log(0.25), math.log(0.25), 0)  # p = (1/2, 1/4, 1/4)
OTHER = picture(math.log(0.1), math.log(0.3), math.log(0.6), 0)  # p = (0.1, 0.3, 0.6)
STRONG, SECOND = picture(0, 2, 0, 1), picture(1, 1, 0, 0)
LABEL = torch.tensor([2])


class Pixels(Classifier):
    """Features are the pixels, logits the first three; remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), linear(torch.eye(4)[:3], torch.zeros(3)))
        self.sizes: list[int] = []

    def features(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return super().features(x)


def made(kind: Callable[..., Any], counts: Tensor = COUNTS, **settings: Any) -> Any:
    """The algorithm on `Pixels`, its rotation head the identity."""
    config = kind.Config(**settings)  # type: ignore[attr-defined]
    algorithm = kind(Pixels(), task_of(counts), config).train()
    if config.lambda_r:
        with torch.no_grad():
            algorithm.remix.rotation.weight.copy_(torch.eye(4))
            algorithm.remix.rotation.bias.zero_()
    return algorithm


def batch_of(x: Tensor, y: Tensor, *views: Tensor) -> Batch:
    return Batch(x, y, Given(views), torch.arange(len(views[0])))


def step(algorithm: Any, batch: Batch, progress: float = 1.0) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = algorithm(batch, Context(int(progress * 100), 100, algorithm))[0]
    return losses


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> remixmatch.Draw:
    """lambda = 3/4; each of three images is mixed with the next; one quarter turn."""
    fixed = remixmatch.Draw(torch.tensor(0.75), torch.tensor([1, 2, 0]), torch.tensor([1]))
    monkeypatch.setattr(remixmatch.ReMix, "draw", lambda *_: fixed)
    return fixed


ONE_VIEW = batch_of(X, LABEL, WEAK, STRONG)


# The losses


def test_the_four_losses_of_a_step(draw: remixmatch.Draw) -> None:
    """A batch of one image is aligned to the prior itself, (0.6, 0.3, 0.1); sharpened:
    q = (0.36, 0.09, 0.01) / 0.46 = (0.782609, 0.195652, 0.021739).

    logits of 3/4 x + 1/4 w:  (0.576713, -0.346574, -0.346574), target 3/4 e_2 + 1/4 q
    logits of 3/4 w + 1/4 s:  (-0.519860, -0.539721, -1.039721), target q
    logits of 3/4 s + 1/4 x:  (0.25, 1.5, 0),                    target 3/4 q + 1/4 e_2
    logits of s: (0, 2, 0), target q; s turned once: (2, 1, 0, 0), label 1
    """
    losses = step(made(ReMixMatch, strong_views=1), ONE_VIEW)
    expected = {
        "labeled": 1.327327,
        "unlabeled": 1.5 * 1.253016,
        "strong": 0.5 * 1.848240,
        "rotation": 0.5 * (math.log(math.exp(2) + math.exp(1) + 2) - 1),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name].detach()) == pytest.approx(value, rel=1e-5), name


def test_every_view_has_the_guess_of_its_own_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing mixed; all views are the weak ones, with logits log p:

    CE_1 = 2/3 log 2 + 1/3 log 4;  CE_2 = 0.021739 log 10 - 0.195652 log 0.3 - 0.782609 log 0.6
    """
    draw = remixmatch.Draw(torch.tensor(1.0), torch.arange(5), torch.tensor([0, 3]))
    monkeypatch.setattr(remixmatch.ReMix, "draw", lambda *_: draw)
    views = torch.cat([WEAK, OTHER])
    losses = step(made(ReMixMatch, strong_views=1, prior="none"), batch_of(X, LABEL, views, views))
    mean = (0.924196 + 0.685393) / 2
    found = {name: float(loss.detach()) for name, loss in losses.items()}
    assert found["labeled"] == pytest.approx(math.log(math.e + 2), rel=1e-5)
    assert found["unlabeled"] == pytest.approx(1.5 * mean, rel=1e-5)
    assert found["strong"] == pytest.approx(0.5 * mean, rel=1e-5)


def test_weights_rise_over_their_share_of_the_steps(draw: remixmatch.Draw) -> None:
    algorithm = made(ReMixMatch, strong_views=1, prior="none", ramp=0.5)
    values = {p: step(algorithm, ONE_VIEW, p) for p in (0.0, 0.25, 0.5, 0.9)}
    for name in ("labeled", "unlabeled", "strong", "rotation"):
        shares = [0.0, 0.5, 1.0] if name in ("unlabeled", "strong") else [1.0, 1.0, 1.0]
        full = float(values[0.9][name].detach())
        found = [float(values[p][name].detach()) for p in (0.0, 0.25, 0.5)]
        assert found == pytest.approx([share * full for share in shares]), name


def test_without_a_ramp_the_weights_are_full_from_the_start(draw: remixmatch.Draw) -> None:
    algorithm = made(ReMixMatch, strong_views=1, prior="none", ramp=0.0)
    found = [float(step(algorithm, ONE_VIEW, p)["unlabeled"].detach()) for p in (0.0, 0.9)]
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("views", [1, 2, 3])
def test_one_forward_pass_sees_every_view(views: int) -> None:
    algorithm = made(ReMixMatch, strong_views=views, batch=2, mu=1)
    assert list(algorithm.views) == ["weak"] + ["strong"] * views
    x, u = X.repeat(2, 1, 1, 1), WEAK.repeat(2, 1, 1, 1)
    losses = step(algorithm, batch_of(x, LABEL.repeat(2), *[u] * (views + 1)))
    # Unmixed: weak, one strong, rotated. Mixed: labeled and all views.
    assert algorithm.net.sizes == [2 * 3 + 2 * (2 + views)]
    assert algorithm.net.sizes == [algorithm.images_per_step]
    assert len(losses) == 4 and all(loss.isfinite() for loss in losses.values())


# The guesses


def guesses(algorithm: Any, *weak: Tensor) -> Tensor:
    views = torch.cat(weak)
    batch = batch_of(X, LABEL, views, views)
    seen = algorithm.remix.look(algorithm.net, batch)
    found: Tensor = algorithm.guess(seen, batch, Context(0, 100, algorithm))
    assert not found.requires_grad
    return found


def test_a_guess_is_sharpened() -> None:
    """Squares (1/4, 1/16, 1/16) / (3/8) and (0.01, 0.09, 0.36) / 0.46."""
    found = guesses(made(ReMixMatch, strong_views=1, prior="none"), WEAK, OTHER)
    expected = [[2 / 3, 1 / 6, 1 / 6], [0.021739, 0.195652, 0.782609]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_a_guess_is_aligned_before_it_is_sharpened() -> None:
    """pbar = (0.3, 0.275, 0.425); p_1 aligned is (1, 0.272727, 0.0588235) / 1.331551."""
    algorithm = made(ReMixMatch, strong_views=1)
    found = guesses(algorithm, WEAK, OTHER)
    expected = [[0.927781, 0.069009, 0.003210], [0.239465, 0.641214, 0.119321]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    # Then p = (0.2, 0.2, 0.6), (0.4, 0.5, 0.1), and pbar the mean over both batches.
    third = picture(math.log(0.2), math.log(0.2), math.log(0.6), 0)
    fourth = picture(math.log(0.4), math.log(0.5), math.log(0.1), 0)
    expected = [[0.724508, 0.166927, 0.108565], [0.734731, 0.264504, 0.000765]]
    found = guesses(algorithm, third, fourth)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_a_given_prior_is_the_target() -> None:
    algorithm = made(ReMixMatch, strong_views=1, prior="given", prior_given=[1.0, 1.0, 2.0])
    found = guesses(algorithm, WEAK)  # one image becomes the target, then sharp: (1, 1, 4) / 6
    expected = torch.tensor([[1 / 6, 1 / 6, 4 / 6]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_aligned_to_a_prior_before_its_first_estimate() -> None:
    algorithm = made(ReMixMatch, strong_views=1, prior="estimated")
    plain = guesses(made(ReMixMatch, strong_views=1, prior="none"), WEAK)
    assert torch.equal(guesses(algorithm, WEAK), plain)
    algorithm.pool_prior.q.copy_(torch.tensor([0.25, 0.25, 0.5]))
    algorithm.pool_prior.estimates += 1
    expected = torch.tensor([[1 / 6, 1 / 6, 4 / 6]])
    torch.testing.assert_close(guesses(algorithm, WEAK), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 1.0, 100.0])
def test_sharpening_is_finite_at_any_temperature(temperature: float) -> None:
    p = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.35, 0.25], [1 / 3, 1 / 3, 1 / 3]])
    q = remixmatch.sharpen(p, temperature)
    torch.testing.assert_close(q.sum(1), torch.ones(3))
    assert q.isfinite().all() and torch.equal(q.argmax(1)[:2], torch.tensor([0, 0]))
    if temperature == 1:
        torch.testing.assert_close(q, p)


# Mixing and rotating


def test_mixed_rows_keep_the_larger_share_of_themselves(draw: remixmatch.Draw) -> None:
    found = remixmatch.mix(torch.tensor([[4.0, 0.0], [0.0, 8.0], [12.0, 4.0]]), draw)
    assert found.tolist() == [[3, 2], [3, 7], [10, 3]]


def test_draws_come_from_the_global_generator() -> None:
    mixer = remixmatch.ReMix(Pixels(), remixmatch.Config())
    shares, turns = [], []
    for seed in range(200):
        torch.manual_seed(seed)
        first = mixer.draw(7, 3)
        torch.manual_seed(seed)
        again = mixer.draw(7, 3)
        pairs = zip(dataclasses.astuple(first), dataclasses.astuple(again), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert first.partner.sort().values.tolist() == list(range(7))
        shares.append(float(first.share))
        turns.extend(first.turns.tolist())
    assert min(shares) >= 0.5 and max(shares) <= 1
    # E max(l, 1 - l) = 1/2 + 2 a^2a / (B(a, a) (2a)^(2a + 1)) = 0.778 for a = 0.75.
    assert sum(shares) / len(shares) == pytest.approx(0.778, abs=0.035)
    assert [turns.count(k) / len(turns) for k in range(4)] == pytest.approx([0.25] * 4, abs=0.06)


def test_quarter_turns() -> None:
    """[[1, 2], [3, 4]] turned against the clock."""
    images = picture(1, 2, 3, 4).repeat(4, 1, 1, 1)
    found = remixmatch.rotate(images, torch.tensor([2, 0, 3, 1])).flatten(1)
    assert found.tolist() == [[4, 3, 2, 1], [1, 2, 3, 4], [3, 1, 4, 2], [2, 4, 1, 3]]


def test_images_that_are_not_square_are_refused_with_a_remedy() -> None:
    wide = torch.zeros(1, 1, 1, 4)
    batch = batch_of(wide, LABEL, wide, wide)
    with pytest.raises(ValueError, match=r"must be square, not 1×4; .*lambda_r=0"):
        step(made(ReMixMatch, strong_views=1), batch)
    losses = step(made(ReMixMatch, strong_views=1, lambda_r=0.0), batch)
    assert losses.keys() == {"labeled", "unlabeled", "strong"}


def test_without_its_loss_there_is_no_rotation_head() -> None:
    algorithm = made(ReMixMatch, lambda_r=0.0, batch=1)
    assert not list(algorithm.remix.parameters())
    step(algorithm, batch_of(X, LABEL, WEAK, STRONG, SECOND))
    assert algorithm.net.sizes == [2 + 4] == [algorithm.images_per_step]


def test_the_rotation_head_is_not_handed_on() -> None:
    algorithm = made(ReMixMatch)
    assert not [key for key in algorithm.export().state_dict() if "rotation" in key]


# With DASO


def blended(counts: list[int], progress: float, **settings: Any) -> tuple[Tensor, Any]:
    """The guesses that reach the losses, with prototypes (1,0,0,0), (0,2,0,0) and none."""
    settings |= {"prior": "none", "proto_temperature": 1.0, "dist_temperature": 1.0}
    algorithm = made(ReMixMatchDASO, strong_views=1, **settings)
    algorithm.semantic.counts.copy_(torch.tensor(counts))
    algorithm.semantic.remembered.copy_(torch.tensor([1, 1, 0]))
    algorithm.semantic.queue[0, 0] = torch.tensor([1.0, 0, 0, 0])
    algorithm.semantic.queue[1, 0] = torch.tensor([0.0, 2, 0, 0])
    given: list[Tensor] = []
    losses = algorithm.remix.losses

    def note(*args: Any) -> Any:
        given.append(args[3])
        return losses(*args)

    algorithm.remix.losses = note
    views = torch.cat([WEAK, OTHER])
    found = step(algorithm, batch_of(X, torch.tensor([0]), views, views), progress)
    assert ("alignment" in found) == (progress >= algorithm.config.warmup)
    return given[0], algorithm


def test_daso_blends_sharpened_guesses_with_similarities() -> None:
    """The labeled image X is the prototype of class 0 once more, so that it stays (1,0,0,0).

    Cosines of the weak views, whose norms are 2.080 and 2.652: (-0.3333, -0.6667, 0) and
    (-0.8682, -0.4540, 0); their softmax (0.321322, 0.230237, 0.448441) and
    (0.204084, 0.309018, 0.486899). v = counts / 8 = (1/2, 1/4, 1) at the classes 0 and 2 of the
    sharpened guesses (2/3, 1/6, 1/6) and (0.0217, 0.1957, 0.7826).
    """
    found, _ = blended([4, 2, 8], progress=0.5)
    expected = [[0.493994, 0.198452, 0.307554], [0.204084, 0.309018, 0.486899]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_daso_counts_final_labels_and_blends_nothing_before_its_warmup() -> None:
    found, algorithm = blended([4, 2, 8], progress=0.1, warmup=0.2)
    expected = [[2 / 3, 1 / 6, 1 / 6], [0.021739, 0.195652, 0.782609]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert algorithm.semantic.window.tolist() == [1, 0, 1]


# With ABC


def balanced(counts: Tensor, **settings: Any) -> dict[str, Tensor]:
    algorithm = made(ReMixMatchABC, counts=counts, threshold=0.0, batch=1, **settings)
    with torch.no_grad():
        algorithm.balanced.linear.weight.copy_(torch.eye(4)[:3])
        algorithm.balanced.linear.bias.zero_()
    losses = step(algorithm, batch_of(X, LABEL, WEAK, STRONG, SECOND))
    assert algorithm.net.sizes == [1 + 3 + 1 + 4] == [algorithm.images_per_step]
    return losses


def test_abc_learns_from_unmixed_images() -> None:
    """Equal counts mask nothing. Labeled: log(e + 2); pool: CE((0,2,0), p) + CE((1,1,0), p)."""
    losses = balanced(torch.ones(3))
    value = {name: float(loss.detach()) for name, loss in losses.items()}
    assert value["balanced_labeled"] == pytest.approx(1.551445, rel=1e-5)
    assert value["balanced_unlabeled"] == pytest.approx(2.851540, rel=1e-5)
    assert len(value) == 6


def test_abc_may_learn_the_most_likely_class() -> None:
    losses = balanced(torch.ones(3), soft_targets=False)
    value = float(losses["balanced_unlabeled"].detach())
    assert value == pytest.approx(math.log(math.exp(2) + 2) + math.log(2 * math.e + 1) - 1)


def test_abc_predicts_with_its_own_head_and_hands_it_on() -> None:
    algorithm = made(ReMixMatchABC)
    with torch.no_grad():
        algorithm.balanced.linear.bias.copy_(torch.tensor([0.0, 0.0, 7.0]))
    logits = algorithm.predict(X)
    assert logits.argmax(1).tolist() == [2]
    assert torch.equal(algorithm.export()(X), logits)


# With DARP


def test_darp_refines_sharpened_guesses_after_the_warmup() -> None:
    algorithm = made(ReMixMatchDARP, strong_views=1, prior="labeled", refine_warmup=0.5)
    plain = guesses(made(ReMixMatch, strong_views=1), WEAK, OTHER)
    assert torch.equal(guesses(algorithm, WEAK, OTHER), plain)
    table = algorithm.refinery.original
    assert torch.equal(table[:2], plain)  # aligned and sharpened, as in the published order
    for progress, refinements in ((0.4, 0), (0.49, 0), (0.5, 1), (0.55, 1), (0.6, 2)):
        algorithm.after_step(Context(round(progress * 100), 100, algorithm))
        assert int(algorithm.refinery.refinements) == refinements
    refined = algorithm.refinery.refined
    torch.testing.assert_close(refined.sum(0) / 16, COUNTS / 10, atol=0.02, rtol=0)
    assert torch.equal(guesses(algorithm, WEAK, OTHER), refined[:2])
    assert not torch.equal(refined[:2], plain)


def test_darp_waits_for_an_estimate() -> None:
    algorithm = made(ReMixMatchDARP, refine_warmup=0.0)
    algorithm.after_step(Context(10, 100, algorithm))
    assert int(algorithm.refinery.refinements) == 0
    algorithm.pool_prior.estimates += 1
    algorithm.after_step(Context(10, 100, algorithm))
    assert int(algorithm.refinery.refinements) == 1


# All of them


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_the_papers(name: str) -> None:
    cfg = load(name)[1].Config()
    found = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(remixmatch.Config)}
    ramp = 1.0 if name == "remixmatch_abc" else 1 / 64
    assert found == {
        "strong_views": 2,
        "temperature": 0.5,
        "mixup_alpha": 0.75,
        "lambda_u": 1.5,
        "lambda_u1": 0.5,
        "lambda_r": 0.5,
        "ramp": ramp,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_unlabeled_images_help(name: str) -> None:
    """Mean recall on the mixture, against labeled images alone with the same plain loss."""
    without = recalls("supervised", seed=1, logit_adjustment=0.0).mean()
    assert recalls(name, seed=1).mean() > without + 0.03
