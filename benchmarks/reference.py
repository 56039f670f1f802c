"""A FixMatch step the way the field writes it, as what the benchmarks compare with.

Not a copy of any one repository: it has what the published PyTorch codes have in common. Images are
transformed one by one by torchvision on PIL images in worker processes; batches are float32 and
contiguous; the views of a step are put together and interleaved for one forward pass; every loss is
read at every step; the averaged model is updated in a Python loop over its state.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision import transforms

from ssl_selmix.data import Data

Transform = Callable[[Image.Image], Tensor]
ENDLESS = 10**9  # samples of an epoch, so that no epoch ends within a benchmark


class Cutout:
    """A grey square of half the side at a random place."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image with the square."""
        half = image.width // 4
        x, y = random.randrange(image.width), random.randrange(image.height)
        image = image.copy()
        image.paste((127, 127, 127), (x - half, y - half, x + half, y + half))
        return image


def pil_views(size: int) -> dict[str, Transform]:
    """Transforms of a PIL image to normalised network input: plain, weak and strong."""
    crop = [
        transforms.RandomHorizontalFlip(),
        transforms.RandomCrop(size, padding=size // 8, padding_mode="reflect"),
    ]
    end = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    return {
        "plain": transforms.Compose(end),
        "weak": transforms.Compose([*crop, *end]),
        "strong": transforms.Compose([*crop, transforms.RandAugment(2, 10), Cutout(), *end]),
    }


class Pictures(Dataset[tuple[tuple[Tensor, ...], int]]):
    """Images as arrays, transformed when asked for; labels (N,), -1 if unknown."""

    def __init__(self, images: Tensor, labels: Tensor, views: tuple[Transform, ...]) -> None:
        self.data = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = labels.tolist()
        self.views = views

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, ...], int]:
        image = Image.fromarray(self.data[index])
        return tuple(view(image) for view in self.views), self.targets[index]


def labeled_pictures(data: Data, views: tuple[Transform, ...]) -> Pictures:
    """The labeled images."""
    return Pictures(data.take(data.labeled).cpu(), data.labels, views)


def pool_pictures(data: Data, views: tuple[Transform, ...]) -> Pictures:
    """The unlabeled images."""
    labels = torch.full((len(data.unlabeled),), -1)
    return Pictures(data.take(data.unlabeled).cpu(), labels, views)


def _endless(pictures: Pictures, batch: int, workers: int) -> Iterator[Any]:
    sampler = RandomSampler(pictures, replacement=True, num_samples=ENDLESS)
    return iter(DataLoader(pictures, batch, sampler=sampler, num_workers=workers, drop_last=True))


def interleave(x: Tensor, groups: int) -> Tensor:
    """Rows 0, n/g, 2n/g, ..., then 1, ...: every stretch has rows of all parts."""
    return x.view(groups, -1, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


def de_interleave(x: Tensor, groups: int) -> Tensor:
    """The rows in their order again."""
    return x.view(-1, groups, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


class ReferenceStep:
    """One FixMatch step per call; fp32, contiguous, `workers` processes for the images."""

    def __init__(
        self,
        net: nn.Module,
        data: Data,
        batch: int,
        mu: int,
        workers: int = 2,
        *,
        lr: float = 1e-3,
        factor: Callable[[int], float] = lambda step: 1.0,
        log_prior: Tensor | None = None,
    ) -> None:
        """With the class prior's logarithm (K,), the labeled loss is logit-adjusted."""
        views = pil_views(data.image_shape[1])
        labeled = labeled_pictures(data, (views["weak"],))
        pool = pool_pictures(data, (views["weak"], views["strong"]))
        # The labeled images are few: one process, if there are several, is enough for them.
        for_labeled = min(1, workers - 1) if workers else 0
        self.labeled = _endless(labeled, batch, max(0, for_labeled))
        self.pool = _endless(pool, batch * mu, workers - max(0, for_labeled))
        self.net, self.mu, self.device = net.train(), mu, data.device
        self.averaged = copy.deepcopy(net).eval()
        self.optimizer = torch.optim.SGD(self._groups(), lr=lr, momentum=0.9, nesterov=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.log_prior = log_prior
        self.meters: dict[str, float] = {}

    def _groups(self) -> list[dict[str, Any]]:
        plain = ("bias", "bn")
        named = list(self.net.named_parameters())
        decayed = [p for name, p in named if not any(word in name for word in plain)]
        other = [p for name, p in named if any(word in name for word in plain)]
        return [{"params": decayed, "weight_decay": 5e-4}, {"params": other, "weight_decay": 0.0}]

    def __call__(self) -> None:
        """Load, forward, backward, update, read."""
        (x,), y = next(self.labeled)
        (weak, strong), _ = next(self.pool)
        groups = 2 * self.mu + 1
        inputs = interleave(torch.cat([x, weak, strong]), groups).to(self.device)
        y = y.to(self.device)
        logits = de_interleave(self.net(inputs), groups)
        logits_x = logits[: len(x)]
        logits_weak, logits_strong = logits[len(x) :].chunk(2)
        if self.log_prior is not None:
            logits_x = logits_x + self.log_prior
        labeled = F.cross_entropy(logits_x, y)
        confidence, guess = torch.softmax(logits_weak.detach(), dim=-1).max(dim=-1)
        mask = confidence.ge(0.95).float()
        unlabeled = (F.cross_entropy(logits_strong, guess, reduction="none") * mask).mean()
        loss = labeled + unlabeled
        loss.backward()
        self._read(loss=loss, labeled=labeled, unlabeled=unlabeled, mask=mask.mean())
        self.optimizer.step()
        self.scheduler.step()
        self._average(0.999)
        self.net.zero_grad()

    def _read(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.meters[name] = self.meters.get(name, 0.0) + value.item()

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        state, trained = self.net.state_dict(), {name for name, _ in self.net.named_parameters()}
        for name, value in self.averaged.state_dict().items():
            if name in trained:
                value.copy_(value * decay + (1 - decay) * state[name])
            else:
                value.copy_(state[name])


class JointSampler:
    """Class pairs the way SelMix is published: everything is built anew at every re-estimation.

    A loader over the first images, weighted so that classes follow the rows of P; for the second
    image of each pair a `next()` on the index loader of that row, and the image in this process.

    Shape: pairs K×K; partner_labels (M,).
    """

    def __init__(
        self,
        labeled: Pictures,
        pool: Pictures,
        pairs: Tensor,
        partner_labels: Tensor,
        batch: int,
        workers: int,
    ) -> None:
        first, self.second = copy.deepcopy(labeled), copy.deepcopy(pool)
        self.second.targets = partner_labels.tolist()
        num_classes = len(pairs)
        pairs = pairs + 1 / num_classes**3
        weights = self._weights(pairs.sum(1), first.targets, num_classes)
        sampler = WeightedRandomSampler(weights, len(first))
        self.loader = DataLoader(first, batch, sampler=sampler, num_workers=workers)
        positions = TensorDataset(torch.arange(len(self.second)))
        self.batches = itertools.chain.from_iterable(itertools.repeat(self.loader))
        self.partners = []
        for row in pairs:
            chosen = self._weights(row, self.second.targets, num_classes)
            sampler = WeightedRandomSampler(chosen, len(self.second))
            self.partners.append(iter(DataLoader(positions, 1, sampler=sampler)))

    def _weights(self, mass: Tensor, targets: list[int], num_classes: int) -> list[float]:
        counts = np.bincount(targets, minlength=num_classes)
        return [float(mass[target]) / counts[target] for target in targets]

    def __next__(self) -> tuple[Tensor, Tensor, Tensor]:
        (x,), y = next(self.batches)
        partners = [self.second[int(next(self.partners[int(k)])[0])][0][0] for k in y]
        return x, torch.stack(partners), y
