"""A body that stays as it is: every image passes it once, and what is trained sees features.

Shapes: N images C×H×W of a part, D features.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rich.console import Console

from ssl_selmix.common import rules
from ssl_selmix.data import Data
from ssl_selmix.data.chunks import EVERY
from ssl_selmix.data.extraction import AT_ONCE
from ssl_selmix.finetuning.given import GivenPool, Part, rows_of
from ssl_selmix.models import Classifier, heads
from ssl_selmix.models.execution import in_mode

BODIES = ("trained", "frozen")


def is_frozen(body: Any, tune: str, augment: Any) -> bool:
    """Whether features stand in the place of the images.

    So it is with a frozen body, and where only the head learns and nothing changes the images.

    Raises:
        ValueError: the body is to be trained and to be left alone, or sees other images each time.
    """
    rules.check("body", body, BODIES)
    if body == "trained":
        return tune == "head" and augment is None
    if tune not in ("full", "head"):
        raise ValueError(
            f"body='frozen' stays as it is and tune={tune!r} trains a part of it; leave out one"
        )
    if augment is not None:
        raise ValueError(
            "augment makes other images at every step and body='frozen' sees each image once; "
            "leave augment out, or use tune='head' in the place of body='frozen'"
        )
    return True


def embedded(data: Data, net: Classifier, console: Console) -> tuple[Data, Classifier]:
    """The data with features in the place of its images, and what lies on top of the body.

    Args:
        data: of the caller, whose pool is a `GivenPool`.
        net: body and classifier; the second network shares the classifier.
        console: is told how far it is.
    """
    pool = data.pool
    assert isinstance(pool, GivenPool)
    seen = replace(pool, parts=_features(pool, net, console))
    return replace(data, pool=seen, test_pool=seen), heads.parted(net)


@torch.no_grad()
def _features(pool: GivenPool, net: Classifier, console: Console) -> tuple[Part, ...]:
    """Every part with its features, N×D, on the model's device."""
    size = AT_ONCE[pool.device.type == "cuda"]
    told = _Progress(sum(map(len, pool.parts)), console)
    found = []
    with in_mode(net, training=False):
        for part in pool.parts:
            rows = []
            for images in replace(pool, parts=(part,)).plain(torch.arange(len(part)), size):
                rows.append(net.features(images))
                told.add(len(images))
            features = torch.cat(rows)
            found.append(Part(partial(rows_of, features), part.labels, len(part), part.name))
    told.end()
    return tuple(found)


class _Progress:
    """Says how many images have passed the body, and how fast."""

    def __init__(self, num: int, console: Console) -> None:
        self._num, self._console, self._done = num, console, 0
        self._since = self._last = time.perf_counter()

    def add(self, num: int) -> None:
        """So many more have."""
        self._done += num
        if (now := time.perf_counter()) - self._last >= EVERY:
            self._last = now
            self._say(f", {(self._num - self._done) / self._rate:.0f} s left")

    def end(self) -> None:
        """All have."""
        self._say("")

    @property
    def _rate(self) -> float:
        return self._done / max(1e-9, time.perf_counter() - self._since)

    def _say(self, more: str) -> None:
        text = f"features: {self._done} of {self._num} images, {self._rate:.1f} images/s{more}"
        self._console.print(text, highlight=False, markup=False)
