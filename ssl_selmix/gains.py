"""Gains of SelMix: how much a mixup of classes i and j would improve an objective (ICLR 2024).

One SGD step on the classifier, on the cross-entropy at the mixed centroid `z_ij = b z_i + (1 - b)
z_j` with label i, moves every logit `A_kl = w_l . z_k` of the class centroids; the gain G_ij is the
first-order change of ψ per unit step size.

Shape legend: K classes, D features.
"""

import math

import torch
from torch import Tensor

from ssl_selmix.objectives import Function, Objective, confusion_gradient, normalise_rows

__all__ = [
    "auto_temperature",
    "confusion_gradient",
    "gain_matrix",
    "logit_gradient",
    "pair_distribution",
    "softmax_pullback",
]

ENTRY_FLOOR = 1e-7
PAIR_FLOOR = 1e-8

# Below this the factorised softmax has lost digits to underflow, and the pair is evaluated by
# itself.
_SAFE_DENOMINATOR = 1e-290
_EXACT_ENTRIES = 2**22


def softmax_pullback(confusion: Tensor, gradient: Tensor) -> Tensor:
    """From g = dψ/dC to dψ/dA for C = rowwise softmax(A) / K: `C∘(g - K rowsum(g∘C))`.

    Exact where the rows of C have mass 1/K, as those of a rowwise softmax have.

    Shape: (K, K), (K, K) -> (K, K).
    """
    return confusion * (gradient - len(confusion) * (gradient * confusion).sum(1, keepdim=True))


def logit_gradient(
    objective: Objective | Function, confusion: Tensor, smoothing: float = 0.0
) -> Tensor:
    """dψ/dA at the logits A for which C = rowwise softmax(A) / K.

    The rows of the measured matrix are first rescaled to mass 1/K and smoothed (see
    `normalise_rows`), and its entries floored at 1e-7. So that the floor cannot take over when
    there are many classes, it is at most 0.001/K², which is less from K = 101 on; what it adds is
    taken from the row again. The derivative is then exact for any validation set.

    Shape: (K, K) -> (K, K).

    Examples:
        >>> confusion = torch.tensor([[0.4, 0.1], [0.2, 0.3]], dtype=torch.float64)
        >>> logit_gradient(lambda c: c.trace(), confusion)  # K C_kk C_kl
        tensor([[ 0.0800, -0.0800],
                [-0.1200,  0.1200]], dtype=torch.float64)
    """
    balanced = normalise_rows(confusion, smoothing).detach()
    floor = min(ENTRY_FLOOR, 1e-3 / len(balanced) ** 2)
    point = normalise_rows(balanced.double().clamp_min(floor))
    gradient = confusion_gradient(objective, point)
    return softmax_pullback(point, gradient).to(balanced.dtype)


def gain_matrix(
    gradient: Tensor,
    prototypes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mix: float = 0.8,
    *,
    bias_trained: bool = False,
    label_term: str = "mixed",
) -> Tensor:
    """Gain of every ordered pair (labelled class i, partner j) for an affine head.

    With M = Z Zᵀ D, `G_ij = (e_i - p_ij) . (b M_i + (1 - b) M_j)`. The softmax p_ij is that of
    `b A_i + (1 - b) A_j + c` and factorises into exp(b A_i) and exp((1 - b) A_j + c), so its
    contractions are matrix products: O(K³) time and O(K²) memory. Arithmetic is float64 whatever
    comes in; the result has the widest of the callers' types.

    `mix` is b, the mean mixup coefficient. `bias_trained` adds what the step does to the head's
    bias. `label_term="published"` gives the formula of the released code, whose label term uses z_i
    in place of z_ij: it is no derivative of a step, but nearly parallel to it.

    Shape: gradient (K, K), prototypes (K, D), weight (K, D), bias (K,) -> (K, K).

    Examples:
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> gradient = torch.tensor([[0.08, -0.08], [-0.12, 0.12]], dtype=torch.float64)
        >>> gain_matrix(gradient, eye, eye)
        tensor([[0.0430, 0.0283],
                [0.0567, 0.0645]], dtype=torch.float64)
    """
    _check_head(gradient, prototypes, weight, bias)
    _check_mix(mix)
    if label_term not in ("mixed", "published"):
        raise ValueError(
            f"label_term must be 'mixed' or 'published', got {label_term!r}; 'mixed' is the "
            "derivative"
        )
    dtype = torch.promote_types(gradient.dtype, torch.promote_types(prototypes.dtype, weight.dtype))
    with torch.no_grad():
        d, z, w = gradient.double(), prototypes.double(), weight.double()
        moved = z @ (z.T @ d)  # M without the K×K Gram matrix
        if bias_trained:
            moved += d.sum(0)
        del d
        logits = z @ w.T
        shift = bias.double() if bias is not None else logits.new_zeros(len(w))
        expected = _expected_under_mix(moved, logits, shift, mix)
        gains = expected.neg_()
        if label_term == "published":
            gains += moved.diagonal()[:, None]
        else:
            gains += mix * moved.diagonal()[:, None]
            gains.add_(moved.T, alpha=1 - mix)
        return gains.to(dtype)


def _expected_under_mix(moved: Tensor, logits: Tensor, shift: Tensor, mix: float) -> Tensor:
    """`p_ij . (b M_i + (1 - b) M_j)` of all pairs; in place, as a K×K is 200 MB at K=5000."""
    left = logits * mix
    # Factors of a row cancel between numerator and denominator, so each row may be shifted to a
    # maximum of 0.
    left.sub_(left.amax(1, keepdim=True)).exp_()
    right = (logits * (1 - mix)).add_(shift)
    right.sub_(right.amax(1, keepdim=True)).exp_()
    total = left @ right.T
    product = left * moved
    expected = product @ right.T
    torch.mul(right, moved, out=product)
    expected.addmm_(left, product.T, beta=mix, alpha=1 - mix)
    del left, right, product
    unsafe = total < _SAFE_DENOMINATOR
    expected.div_(total)
    if bool(unsafe.any()):
        _recompute(expected, unsafe, moved, logits, shift, mix)
    return expected


def _recompute(
    expected: Tensor, unsafe: Tensor, moved: Tensor, logits: Tensor, shift: Tensor, mix: float
) -> None:
    """Evaluate by explicit softmax the pairs that underflowed (logit gaps in the thousands)."""
    # A piece of partners at a time, or one i would need K² memory again.
    pieces = max(1, logits.numel() // _EXACT_ENTRIES)
    for i in unsafe.any(1).nonzero().flatten().tolist():
        for js in unsafe[i].nonzero().flatten().tensor_split(pieces):
            probs = (mix * logits[i] + (1 - mix) * logits[js] + shift).softmax(1)
            expected[i, js] = (probs * (mix * moved[i] + (1 - mix) * moved[js])).sum(1)


def auto_temperature(gains: Tensor) -> float:
    """The temperature `max(G) / (2 ln K + 4)`, proportional to the gains.

    The published temperature is absolute, although gains scale with the squared length of the
    features. With this one the K² pairs whose gain is next to nothing weigh, all together, at most
    e^-4 of the best pair, whatever K.
    """
    best = float(gains.max())
    return best / (2 * math.log(len(gains)) + 4) if best > 0 else 1.0


def pair_distribution(
    gains: Tensor,
    temperature: float | str,
    policy: str = "selective",
) -> Tensor:
    """Probability of every ordered pair of classes; uniform if no gain is positive.

    selective: softmax(G / temperature) over all K² entries, those with G <= 0 struck out, plus
    1e-8 (less for large K, so that it never adds up to more than a millionth). greedy: the best
    pair, ties shared. uniform: every pair alike. `temperature="auto"` follows the scale of the
    gains (`auto_temperature`).

    Shape: (K, K) -> (K, K).

    Examples:
        >>> pair_distribution(torch.tensor([[2.0, 1.0], [-1.0, 0.0]]), 1.0).mul(100).round()
        tensor([[73., 27.],
                [ 0.,  0.]])
    """
    _check_square(gains, "gains")
    if temperature != "auto" and not (
        isinstance(temperature, int | float) and 0 < temperature < math.inf
    ):
        raise ValueError(
            f"temperature must be > 0 and finite, or 'auto', got {temperature!r}; try 'auto'"
        )
    if policy not in ("selective", "greedy", "uniform"):
        raise ValueError(
            f"policy must be 'selective', 'greedy' or 'uniform', got {policy!r}; SelMix is "
            "'selective'"
        )
    with torch.no_grad():
        g = gains.double()
        positive = g > 0
        if policy == "uniform" or not bool(positive.any()):
            share = torch.ones_like(g)
        elif policy == "greedy":
            share = (g == g.max()).double()
        else:
            scale = auto_temperature(g) if isinstance(temperature, str) else temperature
            # The published 1e-8 a pair would be a fifth of all mass at K = 5000.
            floor = min(PAIR_FLOOR, 1e-6 / g.numel())
            share = (g.flatten() / scale).softmax(0).view_as(g) * positive + floor
        return (share / share.sum()).to(gains.dtype)


def _check_square(matrix: Tensor, name: str) -> None:
    if (
        not isinstance(matrix, Tensor)
        or matrix.ndim != 2
        or matrix.shape[0] != matrix.shape[1]
        or len(matrix) < 2
    ):
        shape = tuple(getattr(matrix, "shape", ())) or type(matrix).__name__
        raise ValueError(
            f"{name} must be a (K, K) tensor with K >= 2, got {shape}; rows are the labelled "
            "classes"
        )
    _check_finite(matrix, name)


def _check_finite(values: Tensor, name: str) -> None:
    if not values.is_floating_point() or not bool(values.isfinite().all()):
        what = "inf or nan" if values.is_floating_point() else str(values.dtype)
        raise ValueError(
            f"{name} must be finite floating-point numbers, got {what}; check what it was "
            "computed from"
        )


def _check_head(gradient: Tensor, prototypes: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    _check_square(gradient, "gradient")
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "prototypes": (prototypes, (len(gradient), prototypes.shape[-1] if prototypes.ndim else 0)),
        "weight": (weight, (len(gradient), prototypes.shape[-1] if prototypes.ndim else 0)),
        "bias": (bias, (len(gradient),)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape}, got {tuple(tensor.shape)}; one row per class of "
                "the gradient, prototypes and weight of equal width"
            )
        if tensor.device != gradient.device:
            raise ValueError(
                f"{name} must be on {gradient.device} like gradient, got {tensor.device}; move it "
                "with .to"
            )
        _check_finite(tensor, name)


def _check_mix(mix: float) -> None:
    if not 0 <= mix <= 1:
        raise ValueError(
            f"mix must be in [0, 1], got {mix}; it is the mean mixup coefficient, published as 0.8"
        )
