"""Gains: against recorded vectors, brute force, and what a real optimiser step does."""

import itertools
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_selmix import gains, objectives
from tests.helpers import any_head

GOLDEN = Path(__file__).parent / "golden"
VECTORS = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "objectives_K3.npz").items()}
META = json.loads((GOLDEN / "objectives_meta.json").read_text())["cases"]
CASES = ["generic", "skewed", "zero_recall", "nonuniform_rows", "hyper2"]
OFFICIAL = {
    "mean_recall": "MeanRecall",
    "min_recall": "MinRecall",
    "min_ht_recall": "MinHTRecall",
    "g_mean": "Gmean",
    "h_mean": "Hmean",
    "mean_recall_min_coverage": "MeanRecallWithCoverage",
    "h_mean_min_coverage": "HmeanWithCoverage",
    "mean_recall_min_ht_coverage": "MeanRecallWithHTCoverage",
    "h_mean_min_ht_coverage": "HmeanWithHTCoverage",
}
NAMES = list(OFFICIAL)


def problem(num_classes: int, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Prototypes, weight and bias of a random head."""
    generator = torch.Generator().manual_seed(seed)
    z, w = torch.randn(2, num_classes, dim, generator=generator, dtype=torch.float64)
    return z, w, torch.randn(num_classes, generator=generator, dtype=torch.float64)


def confusion_of(z: Tensor, w: Tensor, c: Tensor) -> Tensor:
    return (z @ w.T + c).softmax(1) / len(z)


def random_gradient(num_classes: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_classes, num_classes, generator=generator, dtype=torch.float64)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


# The recorded vectors.


def with_recorded_multipliers(name: str, case: str) -> objectives.Objective:
    objective = objectives.get(name, 3)
    if objective.multipliers is not None:
        objective.multipliers.copy_(VECTORS[f"{case}/{OFFICIAL[name]}/lambdas"])
    return objective


def sheet_derivative(name: str, c: Tensor, lam: Tensor) -> Tensor:
    """g of the sheet's table (§1), not yet divided by the normaliser."""
    eye = torch.eye(3, dtype=torch.float64)
    if name.startswith("min"):
        return eye * len(c) * lam
    if name.startswith("mean"):
        return eye + lam
    correct, row = c.diagonal()[:, None], c.sum(1, keepdim=True)
    harmonic = len(c) / (row / correct).sum()
    return -(harmonic**2) / len(c) * (1 / correct - eye * row / correct**2) + lam


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_logit_gradient_is_the_recorded_one(name: str, case: str) -> None:
    key, c = f"{case}/{OFFICIAL[name]}", VECTORS[f"{case}/C"]
    objective = with_recorded_multipliers(name, case)
    got, expected = gains.logit_gradient(objective, c), VECTORS[f"{key}/D"]
    if name == "mean_recall_min_ht_coverage":
        # Sheet §1: the released class divides by 1 + the largest group multiplier, its sibling
        # h_mean_min_ht_coverage by 1 + the largest class multiplier, as all of ours do.
        group = max(float(VECTORS[f"{key}/lambda_{g}"]) for g in "ht")
        expected = expected * (1 + group) / (1 + float(VECTORS[f"{key}/lambdas"].max()))
    if case == "zero_recall" and name in ("g_mean", "h_mean", "h_mean_min_coverage"):
        # Sheet §1 and §8.3, deliberate: with the mean of raw recalls, which is 0, the released
        # derivative of the mean vanishes for every class. Ours is that of the floored matrix.
        if name == "h_mean_min_coverage":
            lam = float(VECTORS[f"{key}/lambdas"].max())
            expected = expected + gains.logit_gradient(objectives.get("h_mean", 3), c) / (1 + lam)
            assert relative(got, expected) < 1e-5
        else:
            assert expected.abs().max() < 1e-12 and got[2, 2] > 1e-8
        return
    if case == "nonuniform_rows" and name not in ("g_mean", "h_mean"):
        # Sheet §1 and §8.4, deliberate: with class sizes left in C the released D is no gradient.
        # The formula alone reproduces it; ours is the gradient, by autograd through the softmax.
        zero = torch.zeros(3, dtype=torch.float64)
        multipliers = VECTORS[f"{key}/lambdas"] if f"{key}/lambdas" in VECTORS else zero
        normaliser = 1 + (float(multipliers.max()) if name.endswith("coverage") else 0.0)
        official = gains.softmax_pullback(c, sheet_derivative(name, c, multipliers))
        assert relative(official / normaliser, expected) < 1e-10
        if name != "h_mean_min_ht_coverage":  # all its recorded multipliers are 0
            assert relative(got, expected) > 1e-2
        logits = c.log().requires_grad_()
        (expected,) = torch.autograd.grad(objective.value(logits.softmax(1) / 3), logits)
    floored = bool((c < gains.ENTRY_FLOOR).any())  # then our rows are renormalised, by 2e-7 K
    assert relative(got, expected) < (1e-5 if floored else 1e-10)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_gains_and_distribution_are_the_recorded_ones(name: str, case: str) -> None:
    key = f"{case}/{OFFICIAL[name]}"
    d, temperature = VECTORS[f"{key}/D"], META[f"K3/{case}"]["hyper"]["temp"]
    z, w, bias = (VECTORS[f"{case}/{part}"] for part in ("Z", "W", "bias"))
    official = gains.gain_matrix(d, z, w, bias, label_term="published")
    theorem = gains.gain_matrix(d, z, w, bias)
    scale = float(VECTORS[f"{key}/G"].abs().max())
    for got, expected, tolerance in [
        (official, VECTORS[f"{key}/G"], 1e-5),  # their arithmetic is float32
        (official, VECTORS[f"{key}/ref_G_official_f64"], 1e-10),
        (theorem, VECTORS[f"{key}/ref_G_theorem_f64"], 1e-10),
    ]:
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * scale + 1e-15)
    # 1e-7: the released MeanRecall adds 1e-10 to every pair where the others add 1e-8.
    atol = 1e-5 * scale / temperature + 1e-7
    p = gains.pair_distribution(official, temperature)
    torch.testing.assert_close(p, VECTORS[f"{key}/P"], rtol=0, atol=atol)
    p = gains.pair_distribution(theorem, temperature)
    torch.testing.assert_close(p, VECTORS[f"{key}/ref_P_theorem_f64"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", ["generic", "skewed", "hyper2"])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "mean_recall_min_ht_coverage"])
def test_from_confusion_to_recorded_gains(name: str, case: str) -> None:
    key = f"{case}/{OFFICIAL[name]}"
    z, w, bias = (VECTORS[f"{case}/{part}"] for part in ("Z", "W", "bias"))
    d = gains.logit_gradient(with_recorded_multipliers(name, case), VECTORS[f"{case}/C"])
    assert (
        relative(gains.gain_matrix(d, z, w, bias, label_term="published"), VECTORS[f"{key}/G"])
        < 1e-5
    )


# The logit gradient.


@pytest.mark.parametrize("num_classes", [2, 6])
@pytest.mark.parametrize("name", NAMES)
def test_logit_gradient_agrees_with_finite_differences(name: str, num_classes: int) -> None:
    z, w, c = problem(num_classes)
    logits = z @ w.T + c
    objective = objectives.get(name, num_classes)
    objective.update(logits.softmax(1) / num_classes)
    got = gains.logit_gradient(objective, logits.softmax(1) / num_classes)
    expected = torch.zeros_like(got)
    for k, j in itertools.product(range(num_classes), repeat=2):
        step = torch.zeros_like(logits)
        step[k, j] = 1e-5
        up, down = (objective.value((logits + s).softmax(1) / num_classes) for s in (step, -step))
        expected[k, j] = (up - down).detach() / 2e-5
    assert relative(got, expected) < 1e-6
    assert got.sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_logit_gradient_does_not_see_validation_class_sizes(name: str) -> None:
    c = confusion_of(*problem(4))
    objective = objectives.get(name, 4)
    objective.update(c)
    sizes = torch.tensor([10.0, 1.0, 500.0, 3.0], dtype=torch.float64)[:, None]
    left, right = (gains.logit_gradient(objective, m) for m in (c, c * sizes))
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("name", NAMES)
def test_smoothing_gives_a_class_at_recall_zero_a_gradient(name: str) -> None:
    c = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]], dtype=torch.float64)
    objective = objectives.get(name, 3)
    objective.update(c)
    bare = gains.logit_gradient(objective, c)
    smooth = gains.logit_gradient(objective, c, smoothing=0.05)
    assert bare.isfinite().all() and smooth.isfinite().all()
    assert smooth[2, 2] > 1e-3
    if name != "g_mean":  # whose derivative with respect to a vanishing recall is infinite
        assert bare[2, 2] < 1e-5


def test_floor_does_not_take_over_with_many_classes() -> None:
    num_classes = 300
    d = gains.logit_gradient(torch.trace, torch.eye(num_classes) * 0.8 + 0.2 / num_classes)
    expected = (0.8 + 0.2 / num_classes) * (0.2 - 0.2 / num_classes) / num_classes
    torch.testing.assert_close(d.diagonal(), torch.full((num_classes,), expected))
    floored = gains.logit_gradient(torch.trace, torch.eye(num_classes, dtype=torch.float64))
    assert float(floored.diagonal().max()) < 1.1e-3 / num_classes


def test_logit_gradient_of_functions_and_modules() -> None:
    c = confusion_of(*problem(3))
    as_objective = gains.logit_gradient(objectives.get(objectives.macro_f1, 3), c)
    assert torch.equal(gains.logit_gradient(objectives.macro_f1, c), as_objective)
    with torch.no_grad():
        assert torch.equal(gains.logit_gradient(objectives.macro_f1, c), as_objective)
    assert gains.logit_gradient(objectives.macro_f1, c.float()).dtype == torch.float32


# The gain matrix.


def brute_force(d: Tensor, z: Tensor, w: Tensor, c: Tensor, mix: float, bias: bool) -> Tensor:
    """One explicit update V_ij per pair, contracted with D."""
    k = len(z)
    out = torch.zeros_like(d)
    for i, j in itertools.product(range(k), repeat=2):
        mixed = mix * z[i] + (1 - mix) * z[j]
        residual = torch.eye(k, dtype=torch.float64)[i] - (w @ mixed + c).softmax(0)
        update = torch.outer(residual, mixed)
        out[i, j] = torch.einsum("kl,ld,kd->", d, update, z) + bias * (d.sum(0) @ residual)
    return out


@pytest.mark.parametrize("bias_trained", [False, True])
@pytest.mark.parametrize("mix", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_closed_form_is_brute_force(num_classes: int, mix: float, bias_trained: bool) -> None:
    (z, w, c), d = problem(num_classes), random_gradient(num_classes)
    got = gains.gain_matrix(d, z, w, c, mix, bias_trained=bias_trained)
    assert relative(got, brute_force(d, z, w, c, mix, bias_trained)) < 1e-12
    zero = torch.zeros_like(c)
    torch.testing.assert_close(
        gains.gain_matrix(d, z, w, None, mix), gains.gain_matrix(d, z, w, zero, mix)
    )


def change_by_real_steps(
    head: nn.Module, z: Tensor, objective: objectives.Objective, mix: float, step: float
) -> Tensor:
    """Central difference of ψ over torch.optim.SGD steps of ±`step`, for every pair."""
    start = {name: value.clone() for name, value in head.state_dict().items()}
    out = z.new_zeros(len(z), len(z))
    for i, j in itertools.product(range(len(z)), repeat=2):
        values = []
        for uphill in (False, True):
            head.load_state_dict(start)
            trained = [p for p in head.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(trained, lr=step, maximize=uphill)
            optimizer.zero_grad()
            logits = head((mix * z[i] + (1 - mix) * z[j])[None])
            functional.cross_entropy(logits, torch.tensor([i])).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                values.append(float(objective.value(head(z).softmax(1) / len(z))))
        out[i, j] = (values[0] - values[1]) / (2 * step)
    head.load_state_dict(start)
    return out


class CosineHead(nn.Module):
    """Scaled cosine similarities with a trained scale: not affine in z, nor in its parameters."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.scale = nn.Parameter(weight.new_tensor(3.0))
        self.frozen = nn.Parameter(weight.new_ones(len(weight)), requires_grad=False)

    def forward(self, z: Tensor) -> Tensor:
        unit = functional.normalize(z, dim=1) @ functional.normalize(self.weight, dim=1).T
        return self.scale * unit + self.frozen


def linear_head(w: Tensor, c: Tensor, bias_trained: bool) -> nn.Linear:
    head = nn.Linear(w.shape[1], len(w), dtype=torch.float64)
    head.load_state_dict({"weight": w, "bias": c})
    head.bias.requires_grad_(bias_trained)
    return head


OBJECTIVES: list[str | Callable[[Tensor], Tensor]] = [*NAMES, objectives.macro_f1]


@pytest.mark.parametrize("bias_trained", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gain_is_what_a_real_sgd_step_does(
    name: str | Callable[[Tensor], Tensor], bias_trained: bool
) -> None:
    z, w, c = problem(4, dim=6, seed=2)
    objective = objectives.get(name, 4)
    objective.update(confusion_of(z, w, c))
    d = gains.logit_gradient(objective, confusion_of(z, w, c))
    got = gains.gain_matrix(d, z, w, c, bias_trained=bias_trained)
    measured = change_by_real_steps(linear_head(w, c, bias_trained), z, objective, 0.8, 1e-5)
    assert relative(got, measured) < 1e-6
    other = gains.gain_matrix(d, z, w, c, bias_trained=not bias_trained)
    assert relative(other, measured) > 1e-4  # the bias term is no detail


def test_cosine_head_gain_is_what_a_real_sgd_step_does() -> None:
    z, w, _ = problem(4, seed=5)
    head = CosineHead(w)
    with torch.no_grad():
        c = head(z).softmax(1) / 4
    objective = objectives.get("min_recall", 4, step_size=3.0)
    objective.update(c)
    got = any_head.gain_matrix(gains.logit_gradient(objective, c), z, head, 0.7)
    assert relative(got, change_by_real_steps(head, z, objective, 0.7, 1e-5)) < 1e-6


@pytest.mark.parametrize("bias_trained", [False, True])
def test_closed_form_is_that_of_automatic_differentiation(bias_trained: bool) -> None:
    (z, w, c), d = problem(6), random_gradient(6)
    expected = gains.gain_matrix(d, z, w, c, 0.6, bias_trained=bias_trained)
    head = linear_head(w, c, bias_trained)
    assert relative(any_head.gain_matrix(d, z, head, 0.6), expected) < 1e-12
    assert all(p.grad is None for p in head.parameters())


def test_published_label_term_differs_off_the_diagonal_only() -> None:
    (z, w, c), d = problem(5), random_gradient(5)
    mixed = gains.gain_matrix(d, z, w, c)
    published = gains.gain_matrix(d, z, w, c, label_term="published")
    torch.testing.assert_close(mixed.diagonal(), published.diagonal())
    moved = z @ z.T @ d
    difference = 0.2 * (moved.T - moved.diagonal()[:, None])
    torch.testing.assert_close(mixed - published, difference)


def test_gains_follow_a_renaming_of_classes() -> None:
    (z, w, c), d = problem(6), random_gradient(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    got = gains.gain_matrix(d[order][:, order], z[order], w[order], c[order])
    torch.testing.assert_close(got, gains.gain_matrix(d, z, w, c)[order][:, order])


def test_shifts_that_leave_the_softmax_alone_leave_the_gains_alone() -> None:
    (z, w, c), d = problem(5), random_gradient(5)
    expected = gains.gain_matrix(d, z, w, c)
    torch.testing.assert_close(gains.gain_matrix(d, z, w, c + 100), expected)
    everywhere = w + torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(gains.gain_matrix(d, z, everywhere, c), expected)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
def test_huge_logits_stay_exact(scale: float) -> None:
    (z, w, c), d = problem(6), random_gradient(6)
    got = gains.gain_matrix(d, z, w * scale, c)
    assert relative(got, brute_force(d, z, w * scale, c, 0.8, False)) < 1e-12


def test_precision_of_the_caller_and_no_graph() -> None:
    (z, w, c), d = problem(5), random_gradient(5)
    expected = gains.gain_matrix(d, z, w, c)
    weight = nn.Parameter(w.float())
    got = gains.gain_matrix(d.float(), z.float(), weight, c.float())
    assert got.dtype == torch.float32 and not got.requires_grad
    assert relative(got.double(), expected) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gains.gain_matrix(d, z.float(), weight, c.float())
    assert inside.dtype == torch.float64 and relative(inside, expected) < 1e-5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_everything_runs_inside_validation_code(
    mode: Callable[[], AbstractContextManager[None]],
) -> None:
    (z, w, c), head = problem(4), linear_head(*problem(4)[1:], True)
    objective = objectives.get("h_mean_min_coverage", 4)
    with mode():
        confusion = confusion_of(z, w, c)
        objective.update(confusion)
        d = gains.logit_gradient(objective, confusion)
        closed = gains.gain_matrix(d, z * 1, w, c, bias_trained=True)
        gains.pair_distribution(closed, "auto")
    torch.testing.assert_close(gains.logit_gradient(objective, confusion), d)  # inference tensors
    torch.testing.assert_close(any_head.gain_matrix(d, z, head), closed)


# The distribution over pairs.


def test_selective_distribution() -> None:
    g = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)
    p = gains.pair_distribution(g, 0.5)
    assert float(p.sum()) == pytest.approx(1)
    assert float(p[0, 0] / p[1, 0]) == pytest.approx(math.e, rel=1e-6)
    assert 0 < float(p[0, 1]) < 2e-8
    torch.testing.assert_close(gains.pair_distribution(-g.abs(), 0.5), torch.full_like(g, 0.25))


def test_greedy_and_uniform_distributions() -> None:
    g = torch.tensor([[1.0, 3.0], [3.0, 0.0]])
    assert gains.pair_distribution(g, 1.0, "greedy").tolist() == [[0.0, 0.5], [0.5, 0.0]]
    assert gains.pair_distribution(g, 1.0, "uniform").tolist() == [[0.25, 0.25], [0.25, 0.25]]
    nothing = gains.pair_distribution(-g - 1, 1.0, "greedy")
    assert nothing.tolist() == [[0.25, 0.25], [0.25, 0.25]]


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e7])
def test_auto_temperature_follows_the_scale_of_the_gains(scale: float) -> None:
    g = random_gradient(8)
    expected = gains.pair_distribution(g, "auto")
    torch.testing.assert_close(gains.pair_distribution(g * scale, "auto"), expected)
    assert expected.flatten().argmax() == g.flatten().argmax()


@pytest.mark.parametrize("num_classes", [2, 10, 300])
def test_auto_temperature_keeps_negligible_gains_negligible(num_classes: int) -> None:
    g = torch.full((num_classes, num_classes), 1e-9, dtype=torch.float64)
    g[0, 1] = 1.0
    assert float(gains.pair_distribution(g, "auto")[0, 1]) > 0.97
    assert gains.auto_temperature(-g) == 1.0


def test_two_classes_from_end_to_end() -> None:
    z, w, c = problem(2)
    for name in NAMES:
        objective = objectives.get(name, 2)
        objective.update(confusion_of(z, w, c))
        g = gains.gain_matrix(gains.logit_gradient(objective, confusion_of(z, w, c)), z, w, c)
        assert float(gains.pair_distribution(g, "auto").sum()) == pytest.approx(1)


# What is refused.


def test_bad_input_to_the_logit_gradient() -> None:
    c = confusion_of(*problem(3))
    with pytest.raises(ValueError, match="scalar tensor that depends on the confusion matrix"):
        gains.logit_gradient(lambda c: c.detach().sum(), c)
    with pytest.raises(ValueError, match="scalar tensor"):
        gains.logit_gradient(lambda c: c.diagonal(), c)
    with pytest.raises(ValueError, match="inf or nan"):
        gains.logit_gradient(lambda c: (c - c).sqrt().sum(), c)
    with pytest.raises(ValueError, match="smoothing must be"):
        gains.logit_gradient(torch.trace, c, smoothing=-0.1)
    with pytest.raises(ValueError, match=r"square tensor, got \(2, 3\)"):
        gains.logit_gradient(torch.trace, c[:2])
    unrelated = torch.ones((), requires_grad=True)
    with pytest.raises(ValueError, match="it is missing"):
        gains.logit_gradient(lambda c: unrelated * 1, c)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient": torch.ones(3, 4)}, r"gradient must be a \(K, K\) tensor"),
        ({"gradient": torch.full((3, 3), math.nan)}, "gradient must be finite"),
        ({"gradient": torch.ones(3, 3, dtype=torch.long)}, "got torch.int64"),
        ({"prototypes": torch.ones(4, 5)}, r"prototypes must have shape \(3, 5\), got \(4, 5\)"),
        ({"prototypes": torch.full((3, 5), math.inf)}, "prototypes must be finite"),
        ({"weight": torch.ones(3, 6)}, r"weight must have shape \(3, 5\), got \(3, 6\)"),
        ({"bias": torch.ones(4)}, r"bias must have shape \(3,\), got \(4,\)"),
        ({"mix": 1.2}, r"mix must be in \[0, 1\], got 1.2"),
        ({"label_term": "official"}, "label_term must be 'mixed' or 'published', got 'official'"),
    ],
)
def test_bad_input_to_the_gain_matrix(change: dict[str, object], message: str) -> None:
    z, w, c = problem(3)
    given = {"gradient": random_gradient(3), "prototypes": z, "weight": w, "bias": c} | change
    with pytest.raises(ValueError, match=message):
        gains.gain_matrix(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan, "hot"])
def test_bad_temperatures(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be > 0 and finite, or 'auto', got"):
        gains.pair_distribution(random_gradient(3), temperature)


def test_bad_distributions() -> None:
    with pytest.raises(ValueError, match=r"policy must be .* got 'best'"):
        gains.pair_distribution(random_gradient(3), 1.0, "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gains must be finite"):
        gains.pair_distribution(torch.full((2, 2), math.inf), 1.0)
