"""What a SelMix step costs with its re-estimations, against sampling as it is published.

    python -m benchmarks.selmix_step

Both take the same steps on the same images with the same network, precision and memory format, and
re-estimate every 50 steps: centroids, confusion matrix and gains from the validation images. They
differ in where images come from. Ours draws a batch of pairs in three vectorised draws, makes the
views in batches, and pseudo-labels the unlabeled pool at every re-estimation. The reference
(benchmarks/reference.py) builds loaders of PIL images anew, draws the second image of every pair
by a `next()` on a loader per class, and transforms it in the main process. The published code
takes the pool's true classes, which no run of ours may see and which cost nothing; the last line
gives the reference pseudo-labels too.

Amortised: (a re-estimation with the step after it + 49 further steps) / 50.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.reference import JointSampler, Pictures, labeled_pictures, pil_views, pool_pictures
from benchmarks.synthetic import Sizes, Steps, make_data, network, steps_of
from benchmarks.timing import (
    Times,
    about,
    alternate,
    as_time,
    parser_of,
    positive,
    set_threads,
    spread,
    table,
    threads_argument,
)
from ssl_selmix import gains, losses, objectives
from ssl_selmix.data import Data
from ssl_selmix.metrics import confusion_matrix
from ssl_selmix.models import execution
from ssl_selmix.models.execution import Execution
from ssl_selmix.selmix.pairing import class_means

EVERY = 50  # steps between re-estimations, as published


class Reference:
    """The same stage with loaders of PIL images; the arithmetic of the gains is ours."""

    def __init__(self, data: Data, args: argparse.Namespace, how: Execution) -> None:
        self.data, self.batch, self.workers = data, args.batch, args.workers
        views = pil_views(data.image_shape[1])
        self.labeled = labeled_pictures(data, (views["weak"],))
        self.pool = pool_pictures(data, (views["weak"],))
        validation = data.take(data.validation).cpu()
        self.validation = Pictures(validation, data.validation_labels.cpu(), (views["plain"],))
        self.net = network(args.network, data).prepared(how).train()
        self.objective = objectives.get("min_recall", data.task.num_classes)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=3e-4)
        generator = torch.Generator().manual_seed(0)
        num, num_classes = len(data.unlabeled), data.task.num_classes
        self.partner_labels = torch.randint(num_classes, (num,), generator=generator)
        self.estimate()

    @torch.no_grad()
    def _predicted(self, pictures: Pictures) -> tuple[Tensor, Tensor]:
        self.net.eval()
        loader = DataLoader(pictures, self.batch, num_workers=self.workers)
        features = [self.net.features(_last(x)) for (x,), _ in loader]
        self.net.train()
        return (found := torch.cat(features)), self.net.classifier(found)

    def estimate(self) -> None:
        """Gains and P from the validation images, and a new sampler."""
        features, logits = self._predicted(self.validation)
        k, labels = logits.shape[1], torch.tensor(self.validation.targets)
        confusion = confusion_matrix(labels, logits.argmax(1), k)
        gradient = gains.logit_gradient(self.objective, confusion, smoothing=0.01)
        head = self.net.classifier
        prototypes = class_means(features, labels, k)
        gain = gains.gain_matrix(gradient, prototypes, head.weight.detach(), head.bias.detach())
        pairs = gains.pair_distribution(gain, 0.1)
        self.sampler = JointSampler(
            self.labeled, self.pool, pairs, self.partner_labels, self.batch, self.workers
        )

    def pseudo_label(self) -> None:
        """Classes of the pool by the network, as `estimate` would need them."""
        self._predicted(self.pool)[1].argmax(1)

    def step(self) -> None:
        """One step on a batch of pairs, and its loss read."""
        x, partner, y = next(self.sampler)
        beta = 0.6 + 0.4 * torch.rand(len(x))
        first, second = (self.net.features(_last(part)) for part in (x, partner))
        mixed = losses.mix_features(first, second, beta)
        loss = F.cross_entropy(self.net.classifier(mixed), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def arms_of(ours: Steps, theirs: Reference, steps: int) -> dict[str, Callable[[], object]]:
    """A re-estimation with the step after it, further steps, the reference's pass over the pool.

    The first step after a re-estimation is part of it: it builds the sampler.
    """

    def our_estimation() -> None:
        ours.validate()
        ours()

    def their_estimation() -> None:
        theirs.estimate()
        theirs.step()

    def several(step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(steps):
                step()

        return run

    return {
        "ours, estimation": our_estimation,
        "ours, steps": several(ours),
        "reference, estimation": their_estimation,
        "reference, steps": several(theirs.step),
        "reference, pool": theirs.pseudo_label,
    }


def amortised(times: Times, steps: int) -> Times:
    """Seconds per step with a re-estimation every 50, and without, for each round."""
    found: dict[str, list[float]] = {}
    for who in ("ours", "reference"):
        parts = times.seconds[f"{who}, estimation"], times.seconds[f"{who}, steps"]
        step = [b / steps for b in parts[1]]
        found[f"{who}, step alone"] = step
        cycle = [a + (EVERY - 1) * b for a, b in zip(parts[0], step, strict=True)]
        found[f"{who}, amortised"] = [c / EVERY for c in cycle]
    found["reference with pseudo-labels, amortised"] = [
        a + b / EVERY
        for a, b in zip(
            found["reference, amortised"], times.seconds["reference, pool"], strict=True
        )
    ]
    return Times(found)


def show(parts: Times, found: Times) -> None:
    """Print time per step, and the time of a re-estimation."""
    rows = []
    for arm, values in found.seconds.items():
        ours = "ours, step alone" if arm.endswith("alone") else "ours, amortised"
        ratio = f"{found.ratio(arm, ours):.2f} ({spread(found.ratios(arm, ours))})"
        one = "1" if arm == ours else ratio
        rows.append([arm, as_time(found.median(arm)), spread(values, as_time), one])
    print(table(["step", "median", "range", "ours = 1"], rows))
    print()
    names = {
        "ours, estimation": "ours, with pseudo-labels of the pool",
        "reference, estimation": "reference",
        "reference, pool": "reference, its pass over the pool on top",
    }
    rows = [
        [name, as_time(parts.median(arm)), spread(parts.seconds[arm], as_time)]
        for arm, name in names.items()
    ]
    print(table(["re-estimation with the step after it", "median", "range"], rows))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, time, print the tables."""
    parser = parser_of(__doc__)
    threads_argument(parser)
    parser.add_argument("--network", default="wrn-28-2")
    parser.add_argument("--batch", type=positive, default=64, help="pairs a step")
    parser.add_argument("--size", type=positive, default=32, help="pixels")
    parser.add_argument("--steps", type=positive, default=4, help="timed steps a round")
    parser.add_argument("--workers", type=int, default=2, help="processes of the reference")
    parser.add_argument("--labeled", type=positive, default=1500, help="of the largest class")
    parser.add_argument("--unlabeled", type=positive, default=3000, help="of the largest class")
    parser.add_argument("--rho", type=float, default=100.0)
    parser.add_argument("--validation", type=positive, default=500, help="images per class")
    own = execution.precision_of("auto", torch.device("cpu"))
    parser.add_argument("--precision", default=own, choices=list(execution.DTYPES))
    args = parser.parse_args(argv)
    set_threads(args.threads)
    torch.manual_seed(0)
    sizes = {k: vars(args)[k] for k in ("size", "labeled", "unlabeled", "rho", "validation")}
    data = make_data(Sizes(**sizes))
    how = Execution(args.precision)
    settings = {"batch": args.batch, "evaluate_every": EVERY}
    ours = steps_of("selmix", data, network(args.network, data), settings, how)
    theirs = Reference(data, args, how)
    print(
        f"{args.network}, {args.precision}, {args.size} px, {args.batch} pairs a step; "
        f"{len(data.labeled)} labeled, {len(data.unlabeled)} unlabeled, "
        f"{len(data.validation)} validation images"
    )
    print(about(rounds=args.rounds, threads=torch.get_num_threads()) + "\n")
    times = alternate(arms_of(ours, theirs, args.steps), args.rounds)
    show(times, amortised(times, args.steps))


if __name__ == "__main__":
    main()
