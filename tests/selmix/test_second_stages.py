"""Mixup, CutMix, cRT and LWS: what they mix, what they train, and what they hand on."""

import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix.algorithm import Algorithm, Batch, Context, load
from ssl_selmix.algorithms import crt, cutmix, lws, mixup, selmix
from ssl_selmix.contract import subjects
from ssl_selmix.models import Classifier
from ssl_selmix.models.batch_norm import batch_norms
from ssl_selmix.selmix.fine_tuning import FineTuning, FrozenBody
from ssl_selmix.training import engine
from tests.helpers import gaussians

MIXING: list[type[FineTuning]] = [mixup.Mixup, cutmix.CutMix]
FROZEN: list[type[FrozenBody]] = [crt.ClassifierRetraining, lws.LearnableWeightScaling]

every_mixing = pytest.mark.parametrize("kind", MIXING)
every_frozen = pytest.mark.parametrize("kind", FROZEN)
every_stage = pytest.mark.parametrize("kind", [*MIXING, *FROZEN])


@cache
def first_stage(seed: int = 2) -> Classifier:
    """A network trained a little by plain cross-entropy; never to be changed.

    A little: one that has no loss left on its labeled images teaches a scale nothing.
    """
    data = gaussians.make_data(seed)
    torch.manual_seed(seed)
    kind = load("supervised")[1]
    settings: dict[str, Any] = {"logit_adjustment": 0.0, "steps": 60, "batch": 16, "ema": 0.95}
    algorithm = kind(gaussians.make_net(), data.task, kind.Config(**settings, keep="last"))
    with TemporaryDirectory() as folder:
        return subjects.fit(algorithm, data, Path(folder)).algorithm.export()


def make(kind: type[Algorithm], seed: int = 2, **settings: Any) -> Any:
    """The method on a copy of that network, as a second stage gets it."""
    net = first_stage(seed)
    rebuilt = gaussians.make_net()
    rebuilt.load_state_dict(net.state_dict())
    torch.manual_seed(seed)
    return kind(rebuilt, gaussians.make_data(seed).task, kind.Config(**settings))


def trained(kind: type[Algorithm], **settings: Any) -> tuple[Algorithm, Algorithm]:
    """A method before and after a short stage."""
    algorithm, data = make(kind, **settings), gaussians.make_data(2).at_stage("2-test")
    with TemporaryDirectory() as folder:
        return make(kind, **settings), subjects.fit(algorithm, data, Path(folder)).algorithm


def batch_for(algorithm: Algorithm) -> Batch:
    return next(algorithm.batches(gaussians.make_data(2), 0))


# Mixing.


@every_mixing
def test_the_loss_is_the_mixed_cross_entropy(
    kind: type[FineTuning], monkeypatch: pytest.MonkeyPatch
) -> None:
    """share CE(z, y) + (1 - share) CE(z, y'), with the partners y' of the mixed images."""
    algorithm = make(kind, batch=8).train()
    batch, mixed = batch_for(algorithm), {}

    def mix(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        mixed["second"] = second
        mixed["x"], mixed["share"] = kind.mix(algorithm, first, second)  # type: ignore[attr-defined]
        return mixed["x"], mixed["share"]

    monkeypatch.setattr(algorithm, "mix", mix)
    torch.manual_seed(1)
    loss = algorithm(batch, Context(0, 10, algorithm))[0]["mixed"]
    rows = [(mixed["second"][i] == batch.x).flatten(1).all(1).nonzero()[0, 0] for i in range(8)]
    partner, share, z = torch.stack(rows), mixed["share"], algorithm.net(mixed["x"])
    assert 0 < share < 1 and sorted(partner.tolist()) != partner.tolist()
    expected = share * F.cross_entropy(z, batch.y)
    expected += (1 - share) * F.cross_entropy(z, batch.y[partner])
    torch.testing.assert_close(loss, expected)


def test_selmix_teaches_mixed_features_the_first_label_alone() -> None:
    algorithm = make(load("selmix")[1], batch=8).train()
    batch, net = batch_for(algorithm), algorithm.net
    torch.manual_seed(1)
    loss = algorithm(batch, Context(0, 10, algorithm))[0]["mixed"]
    torch.manual_seed(1)
    beta = 0.6 + 0.4 * torch.rand(8)[:, None]
    mixed = beta * net.features(batch.x) + (1 - beta) * net.features(batch.u[0])
    torch.testing.assert_close(loss, F.cross_entropy(net.classifier(mixed), batch.y))


def test_mixup_interpolates_pixels() -> None:
    first, second = torch.rand(4, 1, 6, 6), torch.rand(4, 1, 6, 6)
    algorithm = make(mixup.Mixup)
    x, share = algorithm.mix(first, second)
    torch.testing.assert_close(x, share * first + (1 - share) * second)


def test_cutmix_pastes_one_rectangle_and_counts_its_pixels() -> None:
    first, second = torch.zeros(3, 2, 8, 6), torch.ones(3, 2, 8, 6)
    algorithm = make(cutmix.CutMix)
    torch.manual_seed(0)
    shares = []
    for _ in range(50):
        x, share = algorithm.mix(first, second)
        assert x.unique().tolist() in ([0, 1], [0], [1])
        assert torch.equal(x, x[:1, :1].expand_as(x))  # the same in every image and channel
        pasted = x[0, 0]
        expected = torch.outer(pasted.amax(1), pasted.amax(0))
        assert torch.equal(pasted, expected)  # a rectangle
        assert float(share) == pytest.approx(1 - float(pasted.mean()))
        shares.append(float(share))
    assert min(shares) < 0.6 and max(shares) > 0.9


def test_the_sides_of_the_rectangle_follow_lambda(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make(cutmix.CutMix)
    monkeypatch.setattr(algorithm, "draw_share", lambda like: torch.tensor(0.75))
    first, second = torch.zeros(1, 1, 16, 8), torch.ones(1, 1, 16, 8)
    torch.manual_seed(0)
    sizes = {
        (int(x[0, 0].amax(1).sum()), int(x[0, 0].amax(0).sum()))
        for x, _ in (algorithm.mix(first, second) for _ in range(200))
    }
    # Half of each side, or less where the image ends.
    assert max(sizes) == (8, 4) and (4, 2) in sizes
    assert {h for h, _ in sizes} == set(range(4, 9)) and {w for _, w in sizes} == {2, 3, 4}


def test_cutmix_leaves_as_many_batches_alone_as_it_is_told() -> None:
    first, second = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)

    def untouched(probability: float) -> float:
        algorithm = make(cutmix.CutMix, probability=probability)
        torch.manual_seed(0)
        shares = torch.stack([algorithm.mix(first, second)[1] for _ in range(200)])
        return float((shares == 1).double().mean())

    assert untouched(0.0) == 1
    assert untouched(1.0) < 0.1  # a rectangle may have no pixel
    assert 0.35 < untouched(0.5) < 0.65


def test_shares_follow_the_beta_distribution() -> None:
    def draws(alpha: float) -> Tensor:
        algorithm = make(mixup.Mixup, alpha=alpha)
        torch.manual_seed(0)
        return torch.stack([algorithm.draw_share(torch.zeros(1)) for _ in range(2000)])

    for alpha in (0.2, 1.0, 8.0):
        shares = draws(alpha)
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
        assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


@every_mixing
def test_body_and_classifier_learn_at_the_rates_of_selmix(kind: type[FineTuning]) -> None:
    algorithm = make(kind)
    theirs = make(selmix.SelMix, step="fixed")

    def rates(algorithm: Any) -> dict[str, float]:
        names = {id(p): name for name, p in algorithm.named_parameters()}
        return {
            names[id(p)]: group["lr_scale"] * algorithm.config.lr
            for group in algorithm.param_groups()
            for p in group["params"]
        }

    assert rates(algorithm) == rates(theirs) and len(set(rates(algorithm).values())) == 2
    ours = algorithm.config
    for field in ("steps", "momentum", "schedule", "ema", "evaluate_every", "batch", "body_lr"):
        assert getattr(ours, field) == getattr(theirs.config, field), field
    decays = {g.get("weight_decay") for g in algorithm.param_groups() for p in g["params"]}
    assert decays == {None, 0.0}


@every_mixing
def test_batch_norms_normalise_by_the_batch_and_keep_what_they_stored(
    kind: type[FineTuning],
) -> None:
    before, after = trained(kind, steps=20, batch=16, lr=0.1, keep="last")
    for old, new in zip(batch_norms(before.net), batch_norms(after.net), strict=True):
        for name in ("running_mean", "running_var", "weight", "bias"):
            assert torch.equal(getattr(old, name), getattr(new, name))
    weights = [algorithm.net.get_parameter("backbone.1.weight") for algorithm in (before, after)]
    assert not torch.equal(*weights)
    algorithm, x = make(kind).train(), batch_for(make(kind)).x
    seen: list[Tensor] = []
    (norm,) = batch_norms(algorithm.net)
    norm.register_forward_hook(lambda module, given, out: seen.append(out))
    algorithm.net.features(x)
    spread = (seen[0] / norm.weight).var(0, unbiased=False)
    torch.testing.assert_close(spread, torch.ones(32), rtol=0.01, atol=0.01)


def test_balanced_draws_are_an_option() -> None:
    data = gaussians.make_data(2)

    def rarest(balanced: bool) -> float:
        batches = make(mixup.Mixup, batch=50, balanced=balanced).batches(data, 0)
        y = torch.cat([batch.y for batch in itertools.islice(batches, 20)])
        return float((y == 3).double().mean())

    assert rarest(True) == pytest.approx(0.25, abs=0.05)
    assert rarest(False) == pytest.approx(float(data.task.labeled_prior[3]), abs=0.03)


# A frozen body.


@every_frozen
def test_the_body_stays_as_it_is(kind: type[FrozenBody]) -> None:
    before, after = trained(kind, steps=20, batch=16, keep="last")
    old, new = before.net.backbone.state_dict(), after.net.backbone.state_dict()
    assert all(torch.equal(old[key], new[key]) for key in old)
    assert not make(kind).train().net.backbone.training


@every_frozen
def test_features_in_training_are_those_of_evaluation(kind: type[FrozenBody]) -> None:
    algorithm = make(kind, batch=8).train()
    batch = batch_for(algorithm)
    loss = algorithm(batch, Context(0, 10, algorithm))[0]["labeled"]
    expected = F.cross_entropy(algorithm.eval().predict(batch.x), batch.y)
    torch.testing.assert_close(loss, expected)


@every_frozen
def test_classes_are_drawn_equally_often(kind: type[FrozenBody]) -> None:
    batches = make(kind, batch=50).batches(gaussians.make_data(2), 0)
    y = torch.cat([batch.y for batch in itertools.islice(batches, 20)])
    torch.testing.assert_close(
        torch.bincount(y) / len(y), torch.full((4,), 0.25), rtol=0, atol=0.05
    )


def test_crt_begins_with_a_new_classifier() -> None:
    head, old = make(crt.ClassifierRetraining).net.classifier, first_stage().classifier
    assert not torch.equal(head.weight, old.weight) and not head.bias.any()
    bound = 32**-0.5  # nn.Linear draws from [-bound, bound]
    assert 0.9 * bound < float(head.weight.detach().abs().max()) <= bound


def test_lws_begins_with_the_old_one_and_moves_its_scale_alone() -> None:
    x = next(gaussians.make_data(2).test_batches())
    before, after = trained(lws.LearnableWeightScaling, steps=20, batch=16, keep="last")
    net = first_stage().eval()
    with torch.no_grad():
        assert torch.equal(before.eval().predict(x), net(x))
        assert torch.equal(after.net(x), net(x))  # what was frozen
        scale = after.get_parameter("scale")
        assert not torch.equal(scale, torch.ones(4))
        torch.testing.assert_close(after.predict(x), scale * net(x))


@pytest.mark.parametrize("biased", [True, False])
def test_lws_hands_on_one_linear_layer(biased: bool) -> None:
    algorithm = make(lws.LearnableWeightScaling)
    if not biased:
        algorithm.net.classifier.bias = None
    with torch.no_grad():
        algorithm.scale.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    net, x = algorithm.eval().export().eval(), next(gaussians.make_data(2).test_batches())
    with torch.no_grad():
        assert torch.equal(net(x), algorithm.predict(x))
    torch.testing.assert_close(net.classifier.weight[3], 3 * first_stage().classifier.weight[3])


# What they are for.


def recalls(net: Classifier) -> Tensor:
    data = gaussians.make_data(2)
    kind = load("supervised")[1]
    algorithm = kind(net, data.task, kind.Config())
    return torch.tensor(engine.measure_test(algorithm, data)["per_class_recall"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", FROZEN)
def test_the_rarest_class_is_found_more_often_than_before(kind: type[FrozenBody]) -> None:
    _, after = trained(kind, steps=200, batch=64, keep="last")
    before = recalls(first_stage())
    assert recalls(after.export())[-1] > before[-1] + 0.05


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("selmix", {"partners": "labeled", "pseudo_weight": "confidence"}, "partners of the pool"),
        ("selmix", {"partners": "labeled", "pseudo_prior": "estimated"}, "partners of the pool"),
        ("selmix", {"policy": "natural", "uniform_share": 0.1}, "no part of policy=natural"),
        ("selmix", {"patience": 3, "stop": "gain"}, "patience=3 needs stop=patience"),
        ("selmix", {"patience": 3, "rate": "absolute"}, "patience=3 does nothing with stop=auto"),
        ("selmix", {"patience": 3, "step": "fixed"}, "add stop=patience"),
        ("selmix", {"rate": "relative", "step": "fixed"}, "rate=relative is found by step=trust"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    name: str, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        load(name)[1].Config(**settings)


def test_a_stage_of_ones_own_may_have_unlabeled_images() -> None:
    @dataclass
    class Config(FineTuning.Config):
        mu: int = 4

    assert Config().mu == 4 and Config(mu=7).mu == 7
