"""A decision rule: from scores to classes, with the figures that it was chosen by.

Shape legend: n images, K classes, T members of a mixture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_selmix.common.atomic import replaced

Array = NDArray[Any]
Scores = TypeVar("Scores", Tensor, Array)

KINDS = ("offsets", "gains", "mixture")
SMALLEST = 1e-12  # probability that is told from 0

_ARRAYS = ("vector", "gains", "shares")
_CHUNK = 4_000_000  # entries of scores that are handled at once
_FORMAT = 1  # of saved files


@dataclass(frozen=True, repr=False)
class DecisionRule:
    """Which class to predict, given scores of an image. Made by `ssl_selmix.posthoc`.

    A vector of offsets is added to the scores that `posthoc` was given: raw logits, before any
    calibration, or logarithms of probabilities. A gain matrix W predicts argmax_j sum_i eta_i W_ij
    from eta = softmax(scores / temperature). A mixture gives each image to one of several gain
    matrices, by shares.

    Attributes:
        kind: "offsets", "gains" or "mixture".
        before: figures of the scores as they are, on the fitting images.
        after: the same figures of this rule, on the same images: too good, as it was fitted to
            them.
        cross_fitted: the same figures when each image is judged by a rule that has not seen it.
        optimism: `after` minus `cross_fitted`, for every figure that is one number.
        interval: 95 % bootstrap interval of the change of the objective from `before` to
            `cross_fitted`; images are resampled within classes.
        notes: what was done and what to be careful about, a sentence each.
        temperature: of the scores, for gains and mixtures.
        probabilities: whether the scores are probabilities.
    """

    kind: str
    vector: Array | None = None  # (K,)
    gains: Array | None = None  # (T, K, K)
    shares: Array | None = None  # (T,)
    temperature: float = 1.0
    probabilities: bool = False
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    cross_fitted: Mapping[str, Any] = field(default_factory=dict)
    optimism: Mapping[str, float] = field(default_factory=dict)
    interval: tuple[float, float] = (0.0, 0.0)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Its figures in a few lines; arrays of hundreds of classes tell a reader nothing."""
        lines = [f"DecisionRule: {self.kind} for {self.num_classes} classes"]
        if self.before:
            lines += [f"{'':14} before   after  cross-fitted"]
        for name, value in self.before.items():
            if isinstance(value, float) and name in self.after and name in self.cross_fitted:
                rest = f"{self.after[name]:7.3f}  {self.cross_fitted[name]:12.3f}"
                lines += [f"{name:14} {value:6.3f} {rest}"]
        return "\n".join([*lines, *self.notes])

    @property
    def num_classes(self) -> int:
        """K."""
        if self.vector is not None:
            return len(self.vector)
        assert self.gains is not None
        return int(self.gains.shape[1])

    @property
    def offsets(self) -> Tensor:
        """What is added to the scores, (K,) float64 with mean 0.

        Raises:
            ValueError: the rule is no vector.
        """
        if self.vector is None:
            raise ValueError(
                f"only a rule of kind 'offsets' has offsets, this one is {self.kind!r}; use "
                "predict, or posthoc(..., rule='offsets')"
            )
        return torch.from_numpy(self.vector.copy())

    @property
    def best(self) -> DecisionRule:
        """The member of a mixture that does best alone; any other rule itself.

        It is deterministic and has no figures of its own but those that a new `posthoc` would find.
        """
        if self.kind != "mixture":
            return self
        assert self.gains is not None
        return DecisionRule(
            "gains",
            gains=self.gains[:1],
            shares=np.ones(1),
            temperature=self.temperature,
            probabilities=self.probabilities,
            notes=("The best deterministic member of a mixture, alone.",),
        )

    def adjust(self, logits: Scores) -> Scores:
        """Logits whose arg-max is this rule's class, on the caller's device and in his precision.

        For offsets this is `logits + offsets`. For gains it is the logarithm of the expected gain
        of each class, counted from the least: its arg-max is the rule, its softmax no probability.

        Shape: (n, K) -> (n, K), what `posthoc` was given: logits, or probabilities.

        Raises:
            ValueError: wrong shape, NaN, or a mixture, which has no logits; take `rule.best`.
        """
        if self.kind == "mixture":
            raise ValueError(
                "a mixture draws a rule for each image and has no logits; use predict, or "
                "rule.best.adjust for its best deterministic member"
            )
        scores = self._scores(logits)
        if self.vector is not None:
            adjusted = scores + self.vector
        else:
            assert self.gains is not None
            # A constant for each row of gains changes no decision, and makes all gains positive.
            gain = self.gains[0] - self.gains[0].min(1, keepdims=True) + SMALLEST
            adjusted = np.log(_softmax(scores / self.temperature) @ gain)
        if isinstance(logits, Tensor):
            return torch.from_numpy(adjusted).to(logits.device, _float_type(logits))
        return np.asarray(adjusted, logits.dtype if logits.dtype.kind == "f" else np.float64)

    def predict(self, logits: Scores) -> Scores:
        """The class of each image, int64 on the caller's device.

        A mixture draws by a number made of the scores of the image, so that an image gets the same
        class in any batch, and single images are still spread over all members.

        Shape: (n, K) -> (n,), what `posthoc` was given: logits, or probabilities.

        Raises:
            ValueError: wrong shape or NaN.
        """
        rows = max(1, _CHUNK // self.num_classes)
        parts = [
            self.classes(self._scores(logits[i : i + rows])) for i in range(0, len(logits), rows)
        ]
        classes = np.concatenate(parts or [self.classes(self._scores(logits))])
        if isinstance(logits, Tensor):
            return torch.from_numpy(classes).to(logits.device)
        return classes

    def classes(self, scores: Array) -> Array:
        """`predict` for scores that were checked. Shape: (n, K) -> (n,) int64."""
        if self.vector is not None:
            return np.asarray((scores + self.vector).argmax(1), np.int64)
        assert self.gains is not None and self.shares is not None
        members = np.stack(self._member_classes(scores))
        drawn = np.searchsorted(np.cumsum(self.shares)[:-1], _draws(scores), side="right")
        return np.asarray(members[drawn, np.arange(len(scores))], np.int64)

    def expected(self, scores: Array) -> list[tuple[float, Array]]:
        """Share and predictions (n,) of every deterministic rule in this one."""
        if self.vector is not None:
            return [(1.0, self.classes(scores))]
        assert self.shares is not None
        return list(zip(self.shares.tolist(), self._member_classes(scores), strict=True))

    def _member_classes(self, scores: Array) -> list[Array]:
        assert self.gains is not None
        probs = _softmax(scores / self.temperature)
        return [(probs @ gain).argmax(1) for gain in self.gains]

    def _scores(self, given: Tensor | Array) -> Array:
        scores = as_array(given)
        if scores.ndim != 2 or scores.shape[1] != self.num_classes:
            raise ValueError(
                f"scores must be (images, {self.num_classes}), got {tuple(scores.shape)}; this "
                f"rule is for {self.num_classes} classes"
            )
        return checked_scores(scores, self.probabilities).astype(np.float64)

    def save(self, path: str | Path) -> None:
        """Write the rule with its figures as .npz: arrays and one JSON text, no pickle."""
        arrays = {n: a for n in _ARRAYS if (a := getattr(self, n)) is not None}
        names = ("kind", "temperature", "probabilities", "before", "after", "cross_fitted")
        about = {n: getattr(self, n) for n in (*names, "optimism", "interval", "notes")}
        text = np.array(json.dumps({"format": _FORMAT, **about}))
        with replaced(Path(path)) as file:
            np.savez(file, about=text, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> DecisionRule:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no decision rule, or of a later version.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                arrays = {n: file[n] for n in _ARRAYS if n in file}
            version = about.pop("format")
        except (KeyError, ValueError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(
                f"{path} must be a decision rule written by DecisionRule.save, it is not: {error}"
            ) from error
        if version != _FORMAT or about.get("kind") not in KINDS:
            raise ValueError(
                f"{path} must be a decision rule of format {_FORMAT}, got format {version} of kind "
                f"{about.get('kind')!r}; update ssl_selmix"
            )
        low, high = about.pop("interval")
        notes = tuple(about.pop("notes"))
        return cls(**arrays, **about, interval=(low, high), notes=notes)


def as_array(given: Tensor | Array) -> Array:
    """Numbers of a tensor or an array; half precision becomes float32."""
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = given.float() if given.dtype in (torch.float16, torch.bfloat16) else given
        return np.asarray(given.numpy())
    array = np.asarray(given)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def checked_scores(scores: Array, probabilities: bool) -> Array:
    """Scores (n, K) that rank classes: logits, or logarithms of probabilities.

    Raises:
        ValueError: no numbers, NaN or infinity, or probabilities that do not sum to 1.
    """
    if scores.dtype.kind not in "fiu":
        raise ValueError(f"scores must be numbers, got {scores.dtype}; pass logits as floats")
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)
    # The sum is finite if all are, and costs no array of truth values.
    if not np.isfinite(scores.sum(dtype=np.float64)) and not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(1))[0])
        raise ValueError(
            f"scores must be finite, got {scores[row].tolist()[:10]} in row {row}; look for a "
            "diverged model or a logarithm of 0"
        )
    if not probabilities:
        return scores
    sums = scores.sum(1, dtype=np.float64)
    wrong = np.flatnonzero((np.abs(sums - 1) > 1e-2) | (scores < 0).any(1))
    if len(wrong):
        raise ValueError(
            f"probabilities must be >= 0 and sum to 1, got {scores[wrong[0]].tolist()[:10]} in row "
            f"{wrong[0]}; pass softmax(1), or logits with probabilities=False"
        )
    return np.asarray(np.log(np.maximum(scores, SMALLEST)))


def _softmax(scores: Array) -> Array:
    exponential = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(exponential / exponential.sum(1, keepdims=True))


def _float_type(like: Tensor) -> torch.dtype:
    return like.dtype if like.is_floating_point() else torch.float64


def _draws(scores: Array) -> Array:
    """A number in [0, 1) for each image that depends on nothing but its scores. (n, K) -> (n,)."""
    # Differences to the largest, so that a constant added to all scores changes nothing.
    steps = np.rint((scores - scores.max(1, keepdims=True)) * 2**12).astype(np.int64)
    factors = np.random.default_rng(2026).integers(1, 2**62, scores.shape[1]) | 1
    mixed = (steps * factors).sum(1).astype(np.uint64)  # overflow wraps around, as it should
    for shift in (33, 29):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(0xFF51AFD7ED558CCD)
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) / 2**53)
