"""The Gaussian discriminant against scikit-learn's, and what it does about rare classes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from ssl_selmix.methods import discriminant
from ssl_selmix.methods.discriminant import Shape

K = 3


def images(num: int, num_features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features far from 0, and classes of which the last is rare."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) * 7 % 11 // 4
    labels = labels.clamp_max(K - 1)
    spread = torch.randn(num_features, num_features, generator=generator)
    centres = torch.randn(K, num_features, generator=generator)
    noise = torch.randn(num, num_features, generator=generator) @ spread / num_features**0.5
    return (100 + centres[labels] + noise).double(), labels


def shares_of(labels: Tensor) -> Tensor:
    return F.one_hot(labels, K).double()


def fitted(x: Tensor, labels: Tensor, shrinkage: float, corrected: bool) -> tuple[Tensor, Tensor]:
    centre = x.mean(0)
    found = discriminant.sums(x, labels, K, centre)
    shape = Shape(found.covariance(), centre)
    linear = shape.classifier(found.means(), found.counts, shrinkage, corrected=corrected)
    return linear.weight, linear.bias


def test_it_is_the_discriminant_of_scikit_learn() -> None:
    for num, num_features in ((60, 8), (20, 40)):  # also more features than images
        x, labels = images(num, num_features)
        for a in (0.1, 0.7, 1.0):
            model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=a)
            model.fit(x.numpy(), labels.numpy())
            weight, bias = fitted(x, labels, a, corrected=False)
            # Theirs divides the scatter by N, ours by N - K; and theirs has the log prior in it.
            ratio = (num - K) / num
            theirs = model.coef_ * ratio
            prior = np.log(np.bincount(labels.numpy()) / num)
            offset = (model.intercept_ - prior) * ratio
            assert np.allclose(weight, theirs - theirs.mean(0), rtol=1e-6, atol=1e-9)
            assert np.allclose(bias, offset - offset.mean(), rtol=1e-6, atol=1e-6)


def test_few_images_no_longer_cost_a_class_its_predictions() -> None:
    """Two classes of equal shape, 400 images and 6 of them: new ones are told alike."""
    generator = torch.Generator().manual_seed(0)
    d = 40

    def draw(num: int) -> Tensor:
        x = torch.randn(2 * num, d, generator=generator, dtype=torch.float64)
        x[num:, 0] += 3
        return x

    recalls: dict[bool, list[Tensor]] = {False: [], True: []}
    for _ in range(8):
        x = torch.cat([draw(400)[:400], draw(6)[6:]])
        labels = torch.arange(406) // 400
        new, truth = draw(500), torch.arange(1000) // 500
        for corrected, found in recalls.items():
            weight, bias = fitted(x, labels, 0.1, corrected)
            right = (new @ weight.T + bias)[:, :2].argmax(1) == truth
            found.append(right.view(2, 500).double().mean(1))
    plain, fair = (torch.stack(recalls[key]).mean(0) for key in (False, True))
    assert plain[0] - plain[1] > 0.25  # the rare class is told too seldom
    assert (fair[0] - fair[1]).abs() < 0.1 and fair.mean() > plain.mean() + 0.03


def test_the_sums_of_parts_are_those_of_the_whole() -> None:
    x, labels = images(50, 6)
    centre = torch.full((6,), 90.0, dtype=torch.float64)
    whole = discriminant.sums(x, labels, K, centre)
    parts = discriminant.sums(x[:20], labels[:20], K, centre)
    parts = parts + discriminant.sums(x[20:], labels[20:], K, centre)
    for a, b in zip(vars(whole).values(), vars(parts).values(), strict=True):
        assert torch.allclose(a, b)
    means = torch.stack([x[labels == k].mean(0) for k in range(K)])
    assert torch.allclose(whole.means() + centre, means)
    within = x - means[labels]
    assert torch.allclose(whole.covariance(), within.T @ within / (50 - K))
    # Images that do not shape the covariance move the means that it is taken around.
    only = discriminant.sums(x[:20], labels[:20], K, centre)
    both = only + discriminant.sums(x[20:], labels[20:], K, centre, shape=False)
    off = x[:20] - means[labels[:20]]
    assert torch.allclose(both.covariance(), off.T @ off / (20 - K))


def test_a_class_without_images_has_the_mean_of_the_others() -> None:
    x, labels = images(30, 5)
    kept = labels != 2
    found = discriminant.sums(x[kept], labels[kept], K, x.mean(0))
    assert torch.allclose(found.means()[2], found.means()[:2].mean(0))
    weight, bias = fitted(x[kept], labels[kept], 0.3, corrected=True)
    assert bool(weight.isfinite().all()) and bool(bias.isfinite().all())


def test_images_that_are_all_alike_give_numbers() -> None:
    x = torch.ones(6, 4, dtype=torch.float64)
    weight, bias = fitted(x, torch.tensor([0, 0, 1, 1, 2, 2]), 0.5, corrected=True)
    assert bool(weight.isfinite().all()) and bool(bias.isfinite().all())


def test_the_formula_is_that_of_the_paper() -> None:
    """D ((N - 1) C + tr(C) I)^-1 is the inverse of (1 - a) C + a tr(C) / D I, but for its scale."""
    x, _ = images(20, 30)
    c = torch.cov(x.T)
    a = discriminant.formula_shrinkage(20, 30)
    identity = torch.eye(30, dtype=torch.float64)
    paper = 30 * torch.linalg.inv(19 * c + c.trace() * identity)
    ours = torch.linalg.inv((1 - a) * c + a * c.trace() / 30 * identity)
    ratio = paper / ours
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-6)


def test_the_temperature_is_the_one_of_least_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(K, (4000,), generator=generator)
    logits = torch.randn(4000, K, generator=generator) + 2 * shares_of(labels)
    # Of this mixture 2 z are the log posteriors of equal classes, so that 7 z wants T = 3.5.
    assert abs(discriminant.temperature(7 * logits, labels) / 3.5 - 1) < 0.05
    rare = (labels > 0) | (torch.rand(4000, generator=generator) < 0.02)
    found = discriminant.temperature(7 * logits[rare], labels[rare])
    assert abs(found / 3.5 - 1) < 0.1  # whichever classes have more images
    assert np.isfinite(discriminant.temperature(shares_of(labels), labels))
