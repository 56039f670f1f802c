"""How the network sees the views of one batch: one decision for every FixMatch-like method.

Shapes: B labeled and M unlabeled images, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor

from ssl_selmix.algorithm import Algorithm, Batch, Context
from ssl_selmix.common.rules import Checked, one_of
from ssl_selmix.models import Classifier
from ssl_selmix.models.execution import channels_last, in_mode

Method = TypeVar("Method", bound=Algorithm)
BUCKETS = 8  # sizes that a lazy step rounds up to, where a new size costs more than more images


@dataclass
class Guessing(Checked):
    """Whose predictions of the weak views become pseudo-labels."""

    # student: the network that learns, with the statistics of the batch, as published; teacher: the
    # averaged one in evaluation mode, so that the student never sees the weak views
    pseudo_labels: str = one_of("student", "teacher")


def guesser(method: Method, ctx: Context) -> Method:
    """The method itself, or the averaged one if `pseudo_labels=teacher`."""
    return cast(Method, ctx.teacher) if _of_teacher(method) else method


def guide(method: Algorithm, ctx: Context) -> Classifier | None:
    """What `Look` is to take the weak views from; None: the network that learns."""
    return ctx.teacher.net if _of_teacher(method) else None


def _of_teacher(method: Algorithm) -> bool:
    # A plug-in that derives from FixMatch may have a Config without this setting.
    return getattr(method.config, "pseudo_labels", "student") == "teacher"


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

    For methods that learn nothing through the weak view, which comes first in `views`, or through
    the first few of them. They name "split", and "lazy" if they call `rest` with the images that
    count, in `forwards`.

    A `guide` is another network that sees the weak views in the place of `net`, in evaluation mode.
    Then a joint step passes what a split one does.
    """

    def __init__(
        self, net: Classifier, batch: Batch, guide: Classifier | None = None, weak_views: int = 1
    ) -> None:
        self.net, self.batch, self.how = net, batch, net.execution.views
        self._seen = 1 + weak_views  # the labeled images and the weak views, in a joint pass
        self.guide = guide
        if guide is not None and self.how == "joint":
            self.how = "split"
        self._joint: list[Tensor] = []  # labeled, weak, strong ...
        self._logits: list[Tensor] = []  # of the same
        self._weak: Tensor | None = None

    def weak(self) -> Tensor:
        """Features of the weak views, one view's M×D after the other, without gradient."""
        if self.how == "joint":
            self._joint = self._joint or joint_features(self.net, self.batch)
            return _stacked(self._joint[1 : self._seen]).detach()
        if self._weak is None:
            with torch.no_grad():
                self._weak = self._apart()
        return self._weak

    def _apart(self) -> Tensor:
        views = range(self._seen - 1)
        if self.guide is not None:
            with in_mode(self.guide, training=False):
                return _stacked([_view(self.guide, self.batch, view) for view in views])
        if self.net.execution.with_labeled:
            return _stacked(_views_together(self.net, self.batch, views)[1:])
        return _stacked([_view(self.net, self.batch, view) for view in views])

    def rest(self, needed: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Features of the labeled images and of the strong views, with gradient.

        Rows whose loss is zero anyway may be left out: they are zero then.

        Shape: needed (M,) bool, None for all -> B×D, M×D for each strong view.
        """
        if self.how == "joint":
            self.weak()
            return self._joint[0], self._joint[self._seen :]
        views = range(self._seen - 1, len(self.batch.u))
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
        """Logits of the classifier of who sees the weak views, for the same, without gradient."""
        if self.how == "joint":
            self.weak()
            self._logits = self._logits or _classify(self.net, self._joint)
            return _stacked(self._logits[1 : self._seen]).detach()
        with torch.no_grad():
            return (self.guide or self.net).classifier(self.weak())  # type: ignore[no-any-return]

    def rest_logits(self, needed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same for the labeled images, B×K, and for the strong views one after the other."""
        if self.how == "joint":
            self.weak_logits()
            x, strong = self._logits[0], self._logits[self._seen :]
        else:
            features, views = self.rest(needed)
            x, *strong = _classify(self.net, [features, *views])
        return x, torch.cat(strong)


def _stacked(views: Sequence[Tensor]) -> Tensor:
    return views[0] if len(views) == 1 else torch.cat(list(views))


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
