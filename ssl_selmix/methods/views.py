"""How the network sees the views of one batch: one decision for every FixMatch-like method.

Shapes: B labeled and M unlabeled images, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_selmix.algorithm import Batch
from ssl_selmix.models import Classifier
from ssl_selmix.models.execution import channels_last

BUCKETS = 8  # sizes that a lazy step rounds up to, where a new size costs more than more images


def together(net: Classifier, images: Sequence[Tensor]) -> list[Tensor]:
    """Features of several batches of images from one forward pass, which shares statistics."""
    x = channels_last(torch.cat(list(images)))
    return list(net.features(x).split([len(part) for part in images]))


def _views_together(
    net: Classifier, batch: Batch, views: Sequence[int], rows: Tensor | None = None
) -> list[Tensor]:
    """The same for the labeled images and these views, perhaps of some images only.

    Features of the labeled images come first, those of all their views in one. Several processes
    make only the views that are their share.
    """
    labeled = (batch.x, *batch.more_x)
    found = _each_together(net, batch, labeled, views, rows)
    num = len(labeled)
    return found if num == 1 else [torch.cat(found[:num]), *found[num:]]


def _each_together(
    net: Classifier,
    batch: Batch,
    labeled: Sequence[Tensor],
    views: Sequence[int],
    rows: Tensor | None,
) -> list[Tensor]:
    world = net.execution.world
    if world is None:
        seen = [batch.u[v] if rows is None else batch.u.select(v, rows) for v in views]
        return together(net, [*labeled, *seen])
    wanted = torch.arange(len(batch.index_u)) if rows is None else rows
    own = world.rows(len(wanted), wanted.device)
    parts = [*map(world.own, labeled), *(batch.u.select(v, wanted[own]) for v in views)]
    x = channels_last(torch.cat(parts))
    shares = net.share_features(x).split([len(part) for part in parts])
    nums = [*map(len, labeled), *(len(wanted) for _ in views)]
    return [world.gather(h, num) for h, num in zip(shares, nums, strict=True)]


def joint_features(net: Classifier, batch: Batch) -> list[Tensor]:
    """Features of the labeled view and of every unlabeled view, from one forward pass.

    All views share batch statistics, as in the published code; a view's features follow in the
    order of `Algorithm.views`.

    Shape: B×D (of all views of the labeled images one after the other, if the batch has several),
    then M×D for every view.
    """
    return _views_together(net, batch, range(len(batch.u)))


def joint_logits(net: Classifier, batch: Batch) -> list[Tensor]:
    """Logits of the network's own classifier for the same views; B×K, then M×K."""
    return _classify(net, joint_features(net, batch))


class Look:
    """A batch whose weak views are looked at before the others; `net.execution.views` says how.

    For methods that learn nothing through the weak view, which comes first in `views`. They
    name "split", and "lazy" if they call `rest` with the images that count, in `forwards`.
    """

    def __init__(self, net: Classifier, batch: Batch, *, skips_weak: bool = False) -> None:
        """With `skips_weak`, weak views do not pass with the others: nobody asks for them."""
        self.net, self.batch, self.how = net, batch, net.execution.views
        if skips_weak and self.how == "joint":
            self.how = "split"
        self._joint: list[Tensor] = []  # labeled, weak, strong ...
        self._logits: list[Tensor] = []  # of the same
        self._weak: Tensor | None = None

    def weak(self) -> Tensor:
        """Features of the weak views, M×D, without gradient."""
        if self.how == "joint":
            self._joint = self._joint or joint_features(self.net, self.batch)
            return self._joint[1].detach()
        if self._weak is None:
            with torch.no_grad():
                self._weak = _view(self.net, self.batch, 0)
        return self._weak

    def rest(self, needed: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Features of the labeled images and of the strong views, with gradient.

        Rows whose loss is zero anyway may be left out: they are zero then.

        Shape: needed (M,) bool, None for all -> B×D, M×D for each strong view.
        """
        if self.how == "joint":
            self.weak()
            return self._joint[0], self._joint[2:]
        views = range(1, len(self.batch.u))
        if self.how == "split" or needed is None:
            x, *strong = _views_together(self.net, self.batch, views)
            return x, strong
        rows = self._rows(needed)
        if not len(rows):
            x = self._labeled()
            return x, [x.new_zeros(len(needed), x.shape[1]) for _ in views]
        x, *seen = _views_together(self.net, self.batch, views, rows)
        zeros = x.new_zeros(len(needed), x.shape[1])
        place = rows.to(x.device, non_blocking=True)
        return x, [zeros.index_copy(0, place, h) for h in seen]

    def _labeled(self) -> Tensor:
        if not self.batch.more_x:
            return self.net.features(self.batch.x)
        # View by view: of several processes each has its share of every view.
        return _views_together(self.net, self.batch, ())[0]

    def _rows(self, needed: Tensor) -> Tensor:
        """Positions of the needed rows; others fill up to a bucket where sizes should be few."""
        world = self.net.execution.world
        few_sizes = needed.is_cuda or self.net.execution.runner is not None
        # One wait for the device: which images count decides what is augmented and computed next.
        needed = needed.cpu()
        if not few_sizes and world is None:
            return needed.nonzero()[:, 0]
        bucket = -(-len(needed) // BUCKETS) if few_sizes else 1
        if world is not None:  # every process has the same number of images
            bucket = -(-bucket // world.size) * world.size
        size = min(len(needed), -(-int(needed.sum()) // bucket) * bucket)
        order = needed.to(torch.uint8).argsort(descending=True, stable=True)
        return order[:size].sort().values

    def weak_logits(self) -> Tensor:
        """Logits of the network's own classifier for the weak views, M×K, without gradient."""
        if self.how == "joint":
            self.weak()
            self._logits = self._logits or _classify(self.net, self._joint)
            return self._logits[1].detach()
        with torch.no_grad():
            return self.net.classifier(self.weak())  # type: ignore[no-any-return]

    def rest_logits(self, needed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same for the labeled images, B×K, and for the strong views one after the other."""
        if self.how == "joint":
            self.weak_logits()
            x, _, *strong = self._logits
        else:
            features, views = self.rest(needed)
            x, *strong = _classify(self.net, [features, *views])
        return x, torch.cat(strong)


def _view(net: Classifier, batch: Batch, view: int) -> Tensor:
    world = net.execution.world
    if world is None:
        return net.features(batch.u[view])
    num = len(batch.index_u)
    share = net.share_features(batch.u.select(view, world.rows(num)))
    return world.gather(share, num)


def _classify(net: Classifier, features: Sequence[Tensor]) -> list[Tensor]:
    logits: Tensor = net.classifier(torch.cat(list(features)))
    return list(logits.split([len(f) for f in features]))
