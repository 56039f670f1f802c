"""Label shift: known priors, hand-worked cases, recorded vectors, and when not to trust it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_selmix import label_shift
from ssl_selmix.label_shift import Estimate, class_means, estimate

GOLDEN = Path(__file__).parent / "golden"
SOLVED = ("bbse", "rlls", "em")
NUM_CLASSES, DIM, SEEDS = 10, 6, range(5)


def long_tail(rho: float = 50, num_classes: int = NUM_CLASSES) -> Tensor:
    weights = rho ** -torch.linspace(0, 1, num_classes, dtype=torch.float64)
    return weights / weights.sum()


def shape(name: str) -> Tensor:
    """The five shapes: uniform, and the long tail read in four orders."""
    ranks = torch.arange(NUM_CLASSES)
    order = {
        "long_tail": ranks,
        "uniform": ranks * 0,
        "inverted": ranks.flip(0),
        "middle": (2 * ranks - NUM_CLASSES + 1).abs(),
        "head_tail": NUM_CLASSES - 1 - (2 * ranks - NUM_CLASSES + 1).abs(),
    }[name]
    weights = long_tail()[order]
    return weights / weights.sum()


SHAPES = ("long_tail", "uniform", "inverted", "middle", "head_tail")


class Mixture:
    """Gaussians with unit covariance, whose posteriors under any prior are known."""

    def __init__(self, seed: int, num_classes: int = NUM_CLASSES, spread: float = 1.5) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.means = spread * self.normal(num_classes)

    def normal(self, count: int) -> Tensor:
        return torch.randn(count, DIM, generator=self.generator, dtype=torch.float64)

    def draw(self, labels: Tensor) -> Tensor:
        return self.means[labels] + self.normal(len(labels))

    def logits(self, x: Tensor, prior: Tensor) -> Tensor:
        return x @ self.means.T - self.means.square().sum(1) / 2 + prior.log()

    def labels(self, prior: Tensor, count: int) -> Tensor:
        return torch.multinomial(prior, count, replacement=True, generator=self.generator)


def problem(
    seed: int,
    unlabeled: Tensor,
    source: Tensor,
    *,
    per_class: int = 100,
    pool: int = 4000,
    spread: float = 1.5,
) -> dict[str, Any]:
    """Balanced validation set and a pool, with exact posteriors under `source`."""
    mixture = Mixture(seed, len(source), spread)
    labels = torch.arange(len(source)).repeat_interleave(per_class)
    val = mixture.logits(mixture.draw(labels), source)
    drawn = mixture.labels(unlabeled, pool)
    return {
        "val_probs": val.softmax(1),
        "val_labels": labels,
        "unlabeled_probs": mixture.logits(mixture.draw(drawn), source).softmax(1),
    }


def l1(found: Estimate, truth: Tensor) -> float:
    return float((found.prior - truth).abs().sum())


# Known priors.


@pytest.mark.parametrize("name", SHAPES)
def test_solvers_find_the_prior_in_every_shape(name: str) -> None:
    truth, source = shape(name), long_tail()
    errors: dict[str, list[float]] = {method: [] for method in ("count", *SOLVED)}
    for seed in SEEDS:
        given = problem(seed, truth, source)
        for method, found in errors.items():
            result = estimate(method, **given, source_prior=source, bootstrap=1)
            assert (result.method, result.note) == (method, "")
            assert result.prior.min() >= 0
            assert float(result.prior.sum()) == pytest.approx(1, abs=1e-9)
            found.append(l1(result, truth))
    mean = {method: float(np.mean(found)) for method, found in errors.items()}
    assert mean["em"] < 0.08
    assert max(mean["bbse"], mean["rlls"]) < 0.18
    assert mean["em"] < min(mean["bbse"], mean["rlls"])
    if name != "long_tail":  # the model's own prior leaves counting nothing to get wrong
        assert max(mean[method] for method in SOLVED) < 0.6 * mean["count"]


@pytest.mark.slow
def test_regularisation_helps_with_few_validation_images() -> None:
    source = long_tail()
    errors = np.array(
        [
            [
                l1(estimate(method, **given, source_prior=source, bootstrap=1), shape(name))
                for method in ("bbse", "rlls", "em")
            ]
            for name in ("uniform", "inverted", "head_tail")
            for seed in SEEDS
            for given in [problem(seed, shape(name), source, per_class=15, pool=1500)]
        ]
    ).mean(0)
    bbse, rlls, em = errors
    assert em < rlls < bbse


def test_exact_posteriors_need_no_calibration() -> None:
    """em with the source prior alone, for a long-tailed and a logit-adjusted model."""
    truth = shape("inverted")
    for source in (long_tail(), shape("uniform")):
        for seed in SEEDS:
            given = problem(seed, truth, source)
            raw = estimate("em", **given, source_prior=source, bootstrap=1, calibrate=False)
            assert l1(raw, truth) < 0.08


def test_source_prior_is_scale_free_and_decides_without_calibration() -> None:
    source, truth = long_tail(), shape("uniform")
    given = problem(0, truth, source)
    options: dict[str, Any] = {"bootstrap": 1, "calibrate": False}
    counts = estimate("em", **given, source_prior=1000 * source, **options)
    torch.testing.assert_close(
        counts.prior, estimate("em", **given, source_prior=source, **options).prior
    )
    # Taken for posteriors under the validation frequencies, those of a long-tailed model mislead.
    assert l1(estimate("em", **given, **options), truth) > 3 * l1(counts, truth)


def test_calibrated_posteriors_follow_the_validation_frequencies() -> None:
    """Whatever the frequencies in training and in validation, nothing has to be said about them."""
    truth, source = shape("inverted"), long_tail()
    given = problem(0, truth, source, per_class=200)
    keep = torch.cat([k * 200 + torch.arange(200 - 15 * k) for k in range(NUM_CLASSES)])
    skewed = {
        **given,
        "val_probs": given["val_probs"][keep],
        "val_labels": given["val_labels"][keep],
    }
    for problem_ in (given, skewed):
        assert l1(estimate("em", **problem_, bootstrap=1), truth) < 0.1


def test_bias_corrected_temperature_scaling_helps_em() -> None:
    truth = shape("inverted")
    errors = []
    for seed in SEEDS:
        given = problem(seed, truth, long_tail())
        bias = torch.linspace(2, -2, NUM_CLASSES, dtype=torch.float64)
        for name in ("val_probs", "unlabeled_probs"):
            given[name] = (3 * given[name].log() + bias).softmax(1)
        errors.append(
            [
                l1(
                    estimate(
                        "em", **given, source_prior=long_tail(), bootstrap=1, calibrate=calibrate
                    ),
                    truth,
                )
                for calibrate in (True, False)
            ]
        )
    fitted, raw = np.mean(errors, axis=0)
    assert fitted < 0.1 < 0.3 * raw


def test_calibration_recovers_scale_and_bias() -> None:
    """The optimum of the penalised likelihood, close to the parameters that were put in."""
    mixture = Mixture(0)
    labels = torch.arange(NUM_CLASSES).repeat_interleave(500)
    exact = mixture.logits(mixture.draw(labels), torch.ones(NUM_CLASSES).double())
    bias = torch.linspace(-2, 2, NUM_CLASSES, dtype=torch.float64)
    logs = (3 * exact + bias).log_softmax(1)
    truth = torch.eye(NUM_CLASSES, dtype=torch.float64)[labels]
    params = label_shift._calibrate(logs, truth, None, True).parameters
    assert float(params[0]) == pytest.approx(1 / 3, rel=0.05)
    torch.testing.assert_close(params[1:] - params[1:].mean(), -bias / 3, atol=0.5, rtol=0)
    point = params.clone().requires_grad_()
    start = torch.cat([torch.ones(1), torch.zeros(NUM_CLASSES)])
    loss = -(truth * (point[0] * logs + point[1:]).log_softmax(1)).sum()
    loss = loss + label_shift.CALIBRATION_PRIOR / 2 * (point - start).square().sum()
    (gradient,) = torch.autograd.grad(loss, point)
    assert float(gradient.abs().max()) < 1e-4


def test_separable_validation_set() -> None:
    """Right with certainty everywhere: the scale stays finite, and all methods count."""
    labels = torch.arange(3).repeat(20)
    eye = torch.eye(3)
    pool = eye[torch.tensor([0] * 50 + [1] * 30 + [2] * 20)]
    for method in label_shift.METHODS:
        found = estimate(
            method, val_probs=eye[labels], val_labels=labels, unlabeled_probs=pool, bootstrap=20
        )
        assert found.method == method
        torch.testing.assert_close(found.prior, torch.tensor([0.5, 0.3, 0.2]), atol=0.02, rtol=0)


@pytest.mark.parametrize("method", SOLVED)
def test_classes_missing_from_the_pool(method: str) -> None:
    truth = torch.tensor([0.0, 0.3, 0.0, 0.2, 0.0, 0.1, 0.1, 0.1, 0.1, 0.1]).double()
    found = estimate(method, **problem(1, truth, long_tail()), source_prior=long_tail())
    assert found.method == method
    assert l1(found, truth) < 0.12
    assert float(found.prior[truth == 0].max()) < 0.02
    assert float(found.interval[0, truth == 0].max()) < 1e-3
    assert found.prior.isfinite().all() and found.interval.isfinite().all()


# Cases worked by hand.


def test_bbse_of_two_classes_by_hand() -> None:
    """R = [[.8, .4], [.2, .6]], u = (.7, .3): det .4, q = (.6*.7 - .4*.3, .8*.3 - .2*.7) / .4."""
    zero, one = torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])
    val = torch.stack([zero] * 4 + [one] + [zero] * 2 + [one] * 3)
    given: dict[str, Any] = {"val_probs": val, "val_labels": torch.tensor([0] * 5 + [1] * 5)}
    pool = torch.stack([zero] * 7 + [one] * 3)
    found = estimate("bbse", **given, unlabeled_probs=pool)
    torch.testing.assert_close(found.prior, torch.tensor([0.75, 0.25]))
    # Eigenvalues of R R': trace 1.2, determinant .16.
    high, low = 0.6 + 0.2**0.5, 0.6 - 0.2**0.5
    assert found.condition_number == pytest.approx((high / low) ** 0.5)
    # u = (.9, .1) asks for q = (1.25, -.25), as far from the simplex as is accepted.
    pool = torch.stack([zero] * 89 + [one] * 11)
    clipped = estimate("bbse", **given, unlabeled_probs=pool)
    torch.testing.assert_close(clipped.prior, torch.tensor([1.0, 0.0]))
    assert clipped.method == "bbse"


def test_em_of_two_classes_by_hand() -> None:
    """Likelihood ratios 3 and 1/3 in shares .7, .3: .7 * 2 / (1 + 2q) = .3 * 2 / (3 - 2q)."""
    pool = torch.tensor([[0.75, 0.25]] * 7 + [[0.25, 0.75]] * 3, dtype=torch.float64)
    found = estimate(
        "em",
        val_probs=pool[[0, 0, 0, 9, 9, 9, 9, 0]],
        val_labels=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        unlabeled_probs=pool,
        source_prior=torch.ones(2),
        calibrate=False,
    )
    q = torch.tensor([0.9, 0.1], dtype=torch.float64)
    torch.testing.assert_close(found.prior, q, atol=1e-9, rtol=0)
    joint = pool * q  # the source prior is uniform
    torch.testing.assert_close((joint / joint.sum(1, keepdim=True)).mean(0), q)


def test_em_is_the_limit_of_expectation_maximisation() -> None:
    source = long_tail()
    given = problem(3, shape("middle"), source, pool=200)
    found = estimate("em", **given, source_prior=source, calibrate=False, bootstrap=1).prior
    q = source
    for _ in range(3000):
        joint = given["unlabeled_probs"] * q / source
        q = (joint / joint.sum(1, keepdim=True)).mean(0)
    torch.testing.assert_close(found, q, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")  # of whatever quapy imports
def test_em_agrees_with_quapy() -> None:
    aggregative = pytest.importorskip("quapy.method.aggregative", exc_type=ImportError)
    source = long_tail()
    given = problem(2, shape("inverted"), source, pool=1000)
    posteriors = given["unlabeled_probs"].numpy()
    theirs, _ = aggregative.EMQ.EM(source.numpy(), posteriors, epsilon=1e-9)
    ours = estimate("em", **given, source_prior=source, calibrate=False, bootstrap=1).prior
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)


def test_linear_system_is_the_recorded_one_of_darp() -> None:
    """DARP inverts the mean softmax per class: bbse with soft in place of hard predictions."""
    case = {
        name.rsplit(".", 1)[1]: torch.from_numpy(np.asarray(value)).double()
        for name, value in np.load(GOLDEN / "darp.npz").items()
        if name.startswith("estimate.")
    }
    val, pool = case["val_logits"].softmax(1), case["unl_logits"].softmax(1)
    truth = torch.eye(10, dtype=torch.float64)[case["val_labels"].long()]
    assert float(torch.linalg.cond(class_means(val, truth))) == pytest.approx(
        float(case["cond"]), rel=1e-5
    )
    found = label_shift._Inversion(val, pool, truth).solve((1, torch.Generator()))[0]
    torch.testing.assert_close(found * len(pool), case["q_hat"], atol=0, rtol=1e-5)


# The interval.


@pytest.mark.slow
@pytest.mark.parametrize("method", SOLVED)
def test_interval_covers_the_truth_in_most_seeds(method: str) -> None:
    truth, source = shape("head_tail"), long_tail()
    inside, width = [], []
    for seed in range(10):
        given = problem(seed, truth, source, per_class=60, pool=1500)
        found = estimate(method, **given, source_prior=source, seed=seed, bootstrap=100)
        low, high = found.interval
        inside.append((low <= truth) & (truth <= high))
        width.append(float((high - low).mean()))
        assert bool((low <= high).all()) and float(low.min()) >= 0 and float(high.max()) <= 1
    assert 0.85 < float(torch.stack(inside).double().mean())
    assert float(np.mean(width)) < 0.08


@pytest.mark.slow
def test_one_step_interval_of_em_is_that_of_fitting_again() -> None:
    """Spread over independent problems, as the interval claims, and narrower with more images."""
    truth, source = shape("uniform"), long_tail()
    fits, widths = [], []
    for seed in range(40):
        mixture, labels = Mixture(0), torch.arange(NUM_CLASSES).repeat_interleave(60)
        mixture.generator.manual_seed(seed + 1)
        val = mixture.logits(mixture.draw(labels), source).softmax(1)
        drawn = mixture.labels(truth, 1500)
        pool = mixture.logits(mixture.draw(drawn), source).softmax(1)
        found = estimate("em", val_probs=val, val_labels=labels, unlabeled_probs=pool, bootstrap=50)
        fits.append(found.prior)
        widths.append(found.interval[1] - found.interval[0])
    spread = 2 * 1.96 * torch.stack(fits).std(0).mean()
    assert float(torch.stack(widths).mean() / spread) == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_seed_decides_the_interval_only() -> None:
    given = problem(0, shape("middle"), long_tail(), pool=500)
    for method in label_shift.METHODS:
        first, again, other = (estimate(method, **given, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(first.interval, again.interval)
        assert not torch.equal(first.interval, other.interval)
        torch.testing.assert_close(first.prior, other.prior, atol=1e-12, rtol=0)


# When the problem is ill posed.


def assert_counted(found: Estimate, given: dict[str, Any], reason: str) -> None:
    assert found.method == "count"
    assert reason in found.note
    counted = estimate("count", **given)
    assert counted.note == ""
    assert torch.equal(found.prior, counted.prior)
    assert torch.equal(found.interval, counted.interval)


@pytest.mark.parametrize("method", SOLVED)
def test_falls_back_without_validation_images_of_a_class(method: str) -> None:
    given = problem(0, shape("uniform"), long_tail(), pool=500)
    keep = (given["val_labels"] != 3) & (given["val_labels"] != 7)
    given["val_probs"], given["val_labels"] = given["val_probs"][keep], given["val_labels"][keep]
    found = estimate(method, **given)
    assert_counted(found, given, "no validation image of classes [3, 7]")
    assert found.condition_number > 1e6


@pytest.mark.parametrize("method", ("bbse", "rlls"))
def test_falls_back_if_a_class_is_never_predicted(method: str) -> None:
    given = problem(0, shape("uniform"), long_tail(), pool=500)
    for name in ("val_probs", "unlabeled_probs"):
        probs = given[name].clone()
        others = torch.cat([probs[:, :4], probs[:, 5:]], 1).amax(1)
        probs[:, 4] = torch.minimum(probs[:, 4], 0.9 * others)
        given[name] = probs / probs.sum(1, keepdim=True)
    assert_counted(estimate(method, **given), given, "no prediction of classes [4]")
    # The arg-max is blind to class 4, the posteriors are not.
    assert estimate("em", **given).method == "em"
    assert l1(estimate("em", **given), shape("uniform")) < 0.2


@pytest.mark.parametrize("method", SOLVED)
def test_falls_back_when_ill_conditioned(method: str) -> None:
    """Two classes that cannot be told apart, and posteriors that say next to nothing."""
    given = problem(0, shape("uniform"), shape("uniform"), spread=0.05, pool=500)
    assert_counted(estimate(method, **given, max_condition=20), given, "condition number")
    mild = problem(0, shape("uniform"), long_tail(), pool=500)
    assert estimate(method, **mild).method == method
    assert_counted(estimate(method, **mild, max_condition=1.01), mild, "above 1.01")


@pytest.mark.parametrize("method", SOLVED)
def test_falls_back_when_no_mixture_of_classes_explains_the_pool(method: str) -> None:
    """Predictions are evenly spread on both classes, but all the pool is taken for class 0."""
    pattern = torch.tensor([[0.9, 0.1]] * 6 + [[0.1, 0.9]] * 4)
    val = torch.cat([pattern, 1 - pattern])
    labels = torch.arange(2).repeat_interleave(10)
    pool = pattern[:1].repeat(50, 1)
    given: dict[str, Any] = {"val_probs": val, "val_labels": labels, "unlabeled_probs": pool}
    options: dict[str, Any] = {"calibrate": False, "source_prior": torch.ones(2)}
    assert_counted(estimate(method, **given, **options), given, "total variation")


# Contracts.


@pytest.mark.parametrize("method", label_shift.METHODS)
def test_float32(method: str) -> None:
    given = problem(0, shape("inverted"), long_tail(), pool=1000)
    low = {name: t.float() if t.is_floating_point() else t.int() for name, t in given.items()}
    double, single = estimate(method, **given), estimate(method, **low)
    assert single.prior.dtype == single.interval.dtype == torch.float32
    torch.testing.assert_close(single.prior.double(), double.prior, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", label_shift.METHODS)
def test_order_of_classes_and_images_is_immaterial(method: str) -> None:
    given = problem(0, shape("inverted"), long_tail(), pool=1000)
    found = estimate(method, **given, source_prior=long_tail())
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(NUM_CLASSES, generator=generator)
    shuffled = torch.randperm(len(given["val_labels"]), generator=generator)
    permuted = estimate(
        method,
        val_probs=given["val_probs"][shuffled][:, order],
        val_labels=order.argsort()[given["val_labels"]][shuffled],
        unlabeled_probs=given["unlabeled_probs"][:, order],
        source_prior=long_tail()[order],
    )
    torch.testing.assert_close(permuted.prior, found.prior[order], atol=1e-7, rtol=0)
    assert permuted.condition_number == pytest.approx(found.condition_number)
    torch.testing.assert_close(permuted.interval, found.interval[:, order], atol=0.03, rtol=0)


def test_inputs_are_left_alone_and_inference_mode_is_welcome() -> None:
    given = problem(0, shape("middle"), long_tail(), pool=300)
    before = {name: t.clone() for name, t in given.items()}
    with torch.inference_mode():
        inside = estimate("em", **{name: t.clone() for name, t in given.items()})
    given["unlabeled_probs"].requires_grad_()
    outside = estimate("em", **given)
    assert not outside.prior.requires_grad
    torch.testing.assert_close(inside.prior, outside.prior)
    assert all(torch.equal(before[name], t.detach()) for name, t in given.items())


def test_estimate_is_frozen() -> None:
    found = estimate("count", **problem(0, shape("middle"), long_tail(), pool=300))
    with pytest.raises(AttributeError):
        found.method = "em"  # type: ignore[misc]


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "near miss": ({"method": "bbsee"}, "unknown method 'bbsee'; did you mean bbse"),
    "no near miss": ({"method": "darp"}, "unknown method 'darp'; known: bbse, count"),
    "replicates": ({"bootstrap": 0}, "bootstrap must be at least 1, got 0"),
    "vector": ({"val_probs": torch.ones(4)}, r"val_probs must be \(images, classes\), got \(4,\)"),
    "scalar": ({"val_probs": torch.tensor(1.0)}, r"val_probs must be .* got \(\)"),
    "empty": ({"val_probs": torch.ones(0, 2)}, r"val_probs must be .* got \(0, 2\)"),
    "empty pool": ({"unlabeled_probs": torch.ones(0, 2)}, r"unlabeled_probs .* got \(0, 2\)"),
    "classes": ({"unlabeled_probs": torch.ones(5, 3) / 3}, r"got \(5, 3\); same classes"),
    "one class": ({"val_probs": torch.ones(4, 1)}, r"got \(4, 1\)"),
    "logits": ({"unlabeled_probs": torch.ones(5, 2)}, r"rows of unlabeled_probs .* use softmax"),
    "negative": ({"val_probs": torch.tensor([[1.5, -0.5]] * 4)}, r"-0.5.*use softmax"),
    "nan": ({"val_probs": torch.full((4, 2), torch.nan)}, r"nan.*use softmax"),
    "integers": ({"val_probs": torch.eye(2).long()[[0, 0, 1, 1]]}, "must be float"),
    "few labels": ({"val_labels": torch.tensor([0, 1])}, r"got tensor\(\[0, 1\]\)"),
    "high label": ({"val_labels": torch.tensor([0, 0, 1, 2])}, "integers in 0..1, got"),
    "low label": ({"val_labels": torch.tensor([0, 0, 1, -1])}, "integers in 0..1, got"),
    "one-hot labels": ({"val_labels": torch.eye(2)[[0, 0, 1, 1]]}, "val_labels must be integers"),
    "source length": ({"source_prior": torch.ones(3)}, "source_prior must be 2 positive numbers"),
    "source zero": ({"source_prior": torch.tensor([1.0, 0.0])}, r"got tensor\(\[1., 0.\]\)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_rule_value_and_remedy(name: str) -> None:
    change, message = ERRORS[name]
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]])
    given: dict[str, Any] = {
        "method": "em",
        "val_probs": probs,
        "val_labels": torch.tensor([0, 0, 1, 1]),
        "unlabeled_probs": probs,
    }
    assert estimate(**given).method == "em"
    with pytest.raises(ValueError, match=message):
        estimate(**{**given, **change})
