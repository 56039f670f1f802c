"""Time per image of our views against torchvision (PIL and v2) and albumentations, 32 and 224 px.

    OMP_NUM_THREADS=1 python -m benchmarks.augment

Every pipeline ends in a batch of normalised float32 network input. At 32 px ours is tensor code
for whole batches; the others transform one image at a time, from what their data sets hold: PIL
images, uint8 tensors, arrays. At 224 px all begin with the bytes of JPEG files of 500×375 pixels;
ours is augment/image.py. Strong views are weak ones with two (at 224 px three) operations of
RandAugment and a square. One thread, as in a loader's worker; pipelines take turns in a round.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from benchmarks.photographs import jpegs
from benchmarks.reference import Cutout, pil_views
from benchmarks.synthetic import make_data, noise
from benchmarks.timing import (
    Target,
    Times,
    about,
    alternate,
    parser_of,
    positive,
    set_threads,
    spread,
    table,
    targets_table,
)
from ssl_selmix.data.pool import MemoryPool

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A
import cv2
from albumentations.pytorch import ToTensorV2

SMALL, LARGE = 32, 224
MIDDLE = (0.5,) * 3
VIEWS = ("weak", "strong")
OURS, PIL, V2, ALBUMENTATIONS = "ours", "torchvision PIL", "torchvision v2", "albumentations"
Call = Callable[[], object]


def v2_views(crop: Sequence[Any], size: int, num_ops: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """The newer transforms of torchvision, of uint8 tensors."""
    end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MIDDLE, MIDDLE)]
    square = v2.RandomErasing(p=1, scale=(0.25, 0.25), ratio=(1, 1), value=127)
    strong = [v2.RandAugment(num_ops, 10), square]
    return {"weak": v2.Compose([*crop, *end]), "strong": v2.Compose([*crop, *strong, *end])}


def albumentations_views(crop: Sequence[Any], num_ops: int) -> dict[str, Callable[[Any], Tensor]]:
    """Albumentations, of arrays H×W×3, with RandAugment's operations."""
    end = [A.Normalize(MIDDLE, MIDDLE), ToTensorV2()]
    half = (0.5, 0.5)
    square = A.CoarseDropout((1, 1), half, half, fill=127, p=1)
    some = A.SomeOf(operations(), num_ops, replace=True, p=1)
    made = {"weak": A.Compose([*crop, *end]), "strong": A.Compose([*crop, some, square, *end])}
    return {name: _of_array(view) for name, view in made.items()}


def _of_array(view: Any) -> Callable[[Any], Tensor]:
    return lambda image: view(image=image)["image"]


def operations() -> list[Any]:
    """RandAugment's fourteen in albumentations."""
    still: dict[str, Any] = dict.fromkeys(("brightness", "contrast", "saturation"), (1, 1))
    factor, nearest = (0.05, 0.95), {"interpolation": cv2.INTER_NEAREST, "p": 1}
    jitters = [
        A.ColorJitter(**(still | {name: factor}), hue=(0, 0), p=1)
        for name in ("brightness", "contrast", "saturation")
    ]
    moves = [
        A.Affine(**move, **nearest)
        for move in (
            {"rotate": (-30, 30)},
            {"shear": {"x": (-17, 17), "y": 0}},
            {"shear": {"x": 0, "y": (-17, 17)}},
            {"translate_percent": {"x": (-0.3, 0.3), "y": 0}},
            {"translate_percent": {"x": 0, "y": (-0.3, 0.3)}},
        )
    ]
    plain = [A.NoOp(), A.AutoContrast(p=1), A.Equalize(p=1), A.Posterize((4, 7), p=1)]
    return [*plain, *jitters, *moves, A.Sharpen(p=1), A.Solarize((0, 1), p=1)]


def small(pool: MemoryPool, batch: int) -> dict[tuple[str, str], Call]:
    """Calls that make one view of every image of a batch, 32 px; (view, pipeline) -> call."""
    images = noise(batch, SMALL, seed=1)
    arrays = list(images.permute(0, 2, 3, 1).contiguous().numpy())
    pictures = [Image.fromarray(array) for array in arrays]
    crop = [
        v2.RandomHorizontalFlip(),
        v2.RandomCrop(SMALL, padding=SMALL // 8, padding_mode="reflect"),
    ]
    pad = A.Pad(SMALL // 8, border_mode=cv2.BORDER_REFLECT_101, p=1)
    a_crop = [A.HorizontalFlip(), pad, A.RandomCrop(SMALL, SMALL)]
    pil, newer, other = (
        pil_views(SMALL),
        v2_views(crop, SMALL, 2),
        albumentations_views(a_crop, 2),
    )
    generator = torch.Generator().manual_seed(0)

    def ours(view: str) -> Tensor:
        augmentation = pool.augmentation(view)
        params = augmentation.draw(batch, generator)
        return pool.normalise(augmentation(images, params))

    def calls(view: str) -> dict[tuple[str, str], Call]:
        return {
            (view, OURS): lambda: ours(view),
            (view, PIL): lambda: torch.stack([pil[view](p) for p in pictures]),
            (view, V2): lambda: torch.stack([newer[view](x) for x in images]),
            (view, ALBUMENTATIONS): lambda: torch.stack([other[view](x) for x in arrays]),
        }

    return {key: call for view in VIEWS for key, call in calls(view).items()}


def large(pool: MemoryPool, number: int) -> dict[tuple[str, str], Call]:
    """The same for JPEG files and 224 px."""
    from ssl_selmix.augment import image
    from ssl_selmix.images import photo

    files = list(jpegs(number))
    flip = v1.RandomHorizontalFlip()
    crop = [v1.RandomResizedCrop(LARGE), flip]
    end = [v1.ToTensor(), v1.Normalize(MIDDLE, MIDDLE)]
    pil = {
        "weak": v1.Compose([*crop, *end]),
        "strong": v1.Compose([*crop, v1.RandAugment(3, 10), Cutout(), *end]),
    }
    newer = v2_views(
        [v2.RandomResizedCrop(LARGE, antialias=True), v2.RandomHorizontalFlip()], LARGE, 3
    )
    other = albumentations_views([A.RandomResizedCrop((LARGE, LARGE)), A.HorizontalFlip()], 3)
    steps = count()

    def own(view: str) -> Tensor:
        make, step = image.views(LARGE)[view], next(steps)
        made = [make(photo.Photo(file, "file"), (step, row)) for row, file in enumerate(files)]
        return pool.normalise(torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2))

    def opened(file: bytes) -> Image.Image:
        return Image.open(io.BytesIO(file)).convert("RGB")

    def array(file: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)

    def tensor(file: bytes) -> Any:
        return v2.functional.pil_to_tensor(opened(file))

    def calls(view: str) -> dict[tuple[str, str], Call]:
        return {
            (view, OURS): lambda: own(view),
            (view, PIL): lambda: torch.stack([pil[view](opened(f)) for f in files]),
            (view, V2): lambda: torch.stack([newer[view](tensor(f)) for f in files]),
            (view, ALBUMENTATIONS): lambda: torch.stack([other[view](array(f)) for f in files]),
        }

    return {key: call for view in VIEWS for key, call in calls(view).items()}


def named(calls: dict[tuple[str, str], Call], size: int) -> dict[str, Call]:
    """The calls under the names that the table has."""
    return {f"{view} {size} px, {who}": call for (view, who), call in calls.items()}


def rows(times: Times, number: int, size: int) -> list[list[str]]:
    """A row per view and pipeline: per image, and how many times as long as ours."""
    found = []
    for view in VIEWS:
        for who in (OURS, PIL, V2, ALBUMENTATIONS):
            arm, ours = f"{view} {size} px, {who}", f"{view} {size} px, {OURS}"
            per_image = [1e6 * s / number for s in times.seconds[arm]]
            ratio = f"{times.ratio(arm, ours):.1f} ({spread(times.ratios(arm, ours))})"
            middle = 1e6 * times.median(arm) / number
            found.append(
                [f"{view}, {size} px", who, f"{middle:.0f}", spread(per_image), ratio]
                if who != OURS
                else [f"{view}, {size} px", who, f"{middle:.0f}", spread(per_image), "1"]
            )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, time, print the table."""
    parser = parser_of(__doc__, rounds=9)
    parser.add_argument("--batch", type=positive, default=128, help="images of 32 px per call")
    parser.add_argument("--files", type=positive, default=24, help="JPEG files per call")
    parser.add_argument("--threads", type=positive, default=1)
    args = parser.parse_args(argv)
    set_threads(args.threads)
    cv2.setNumThreads(0 if args.threads == 1 else args.threads)
    torch.manual_seed(0)
    pool = make_data().pool
    assert isinstance(pool, MemoryPool)
    print(about(rounds=args.rounds, threads=args.threads) + "\n")
    times = alternate(named(small(pool, args.batch), SMALL), args.rounds)
    made = rows(times, args.batch, SMALL)
    of_files = alternate(named(large(pool, args.files), LARGE), args.rounds)
    made += rows(of_files, args.files, LARGE)
    print(table(["view", "pipeline", "µs an image", "range", "ours = 1"], made))
    print()
    aims = [
        Target(
            f"{PIL} / {OURS}, {view} {SMALL} px",
            f"{view} {SMALL} px, {PIL}",
            f"{view} {SMALL} px, {OURS}",
            8.0,
            at_least=True,
        )
        for view in VIEWS
    ]
    print(targets_table(times, aims))


if __name__ == "__main__":
    main()
