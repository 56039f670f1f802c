"""What `finetune` reads for its callers: paths, PIL images, names of classes, bytes, any array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tests.finetuning.test_given import Items, images, run

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
HOW = {"mean": MEAN, "std": STD}
NAMES = ["cat", "dog", "cow"]


def pixels(seed: int) -> Tensor:
    """24×3×4×4 bytes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (24, 3, 4, 4), generator=generator, dtype=torch.uint8)


def normalised(image: Any) -> Tensor:
    """Of a PIL image, what the model takes."""
    array = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (array.float() - mean) / std


def pictures(seed: int) -> list[Image.Image]:
    return [Image.fromarray(x.permute(1, 2, 0).contiguous().numpy()) for x in pixels(seed)]


def paths(folder: Path, seed: int) -> list[Path]:
    found = [folder / f"{seed}-{i}.png" for i in range(24)]
    for path, picture in zip(found, pictures(seed), strict=True):
        picture.save(path)
    return found


LABELS = images()[1]


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Figures of tensors that the caller normalised."""
    found: dict[str, Any] = run(
        **of(lambda seed: torch.stack(list(map(normalised, pictures(seed)))))
    ).after
    return found


def of(make: Any, labels: Any = LABELS, **changes: Any) -> dict[str, Any]:
    """Every part made by its seed."""
    parts = {
        name: (make(seed), labels) for seed, name in enumerate(("labeled", "validation", "test"))
    }
    return parts | {"unlabeled": make(3)} | changes


def test_bytes_with_mean_and_std(expected: dict[str, Any]) -> None:
    assert run(**of(pixels, preprocessing=HOW)).after == expected
    last = of(lambda seed: pixels(seed).permute(0, 2, 3, 1).numpy(), preprocessing=HOW)
    assert run(**last).after == expected
    item = Items(lambda x, y: {"image": x, "label": y}, pixels(0))
    assert run(**of(pixels, preprocessing=HOW, labeled=item)).after == expected


def test_pictures_and_paths(expected: dict[str, Any], tmp_path: Path) -> None:
    assert run(**of(pictures, transform=normalised)).after == expected
    assert run(**of(pictures, preprocessing=HOW)).after == expected
    found = of(lambda seed: paths(tmp_path, seed), transform=normalised)
    found["validation"] = (np.array(list(map(str, found["validation"][0]))), LABELS)
    found["labeled"] = list(zip(*found["labeled"], strict=True))
    assert run(**found).after == expected
    rows = [{"image": p, "label": int(y)} for p, y in zip(pictures(0), LABELS, strict=True)]
    assert run(**of(pictures, transform=normalised, labeled=rows)).after == expected


def test_a_transform_of_tensors_in_a_pair(expected: dict[str, Any]) -> None:
    def own(x: Tensor) -> Tensor:
        return normalised(x.permute(1, 2, 0).numpy())

    assert run(**of(pixels, transform=own)).after == expected


def test_names_of_classes(expected: dict[str, Any]) -> None:
    names = [NAMES[int(y)] for y in LABELS]
    given = of(pixels, names, preprocessing=HOW, class_names=NAMES)
    given["validation"] = (pixels(1), np.array(names))
    given["test"] = Items(lambda x, y: (x, NAMES[y]), pixels(2))
    assert run(**given).after == expected
    with pytest.raises(ValueError, match=r"labeled: unknown class 'emu'.*\(image 1\)"):
        run(**given | {"labeled": (pixels(0), ["cat", "emu", *names[2:]])})


def test_arrays_of_any_order_and_stride() -> None:
    x, y = (part.numpy() for part in images(1))
    whole = run(labeled=(x, y)).after
    for kind in (">f4", ">f8"):
        assert run(labeled=(x.astype(kind), y.astype(">i8"))).after == whole
    assert run(labeled=(x[::-1].copy()[::-1], y[::-1].copy()[::-1])).after == whole
    wide = np.zeros((24, 3, 4, 8), dtype=np.float32)
    wide[..., ::2] = x
    locked = np.asfortranarray(x)
    locked.flags.writeable = False
    for array in (wide[..., ::2], locked):
        assert run(labeled=(array, y.astype("u2"))).after == whole


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from zip(*images(1), strict=True)


def test_streams_are_refused_with_the_reason() -> None:
    for source in (Stream(), DataLoader(Stream())):
        with pytest.raises(ValueError, match="drawn by their number, which a stream does not have"):
            run(labeled=source)


def unequal(seed: int) -> list[Image.Image]:
    return [*pictures(seed)[:23], Image.new("RGB", (5, 4))]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"transform": 5}, "transform must be a function of one image, not 5"),
    ({"labeled": (pictures(0), LABELS)}, "gives Image and the model takes tensors; .*transform="),
    ({"labeled": (["none.png"] * 24, LABELS)}, "none.png is no readable image"),
    ({"labeled": (pictures(0), LABELS[:5]), "preprocessing": HOW}, "24 images and labels of shape"),
    ({"labeled": (unequal(0), LABELS), "preprocessing": HOW}, "unequal sizes: .* image 23"),
    ({"labeled": (pixels(0)[:, :2], LABELS), "preprocessing": HOW}, "a mean of 3 channel"),
    ({"labeled": (pictures(0), LABELS), "transform": lambda x: x}, "gives Image"),
    ({"labeled": (pictures(0), LABELS), "transform": lambda x: None}, "gives NoneType"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_mistakes_are_told_in_a_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        run(**changes)
    assert "\n" not in str(told.value)


def test_labels_of_a_hugging_face_set_need_no_image(expected: dict[str, Any]) -> None:
    class Columns:
        column_names: Sequence[str] = ["image", "label"]

        def with_format(self, kind: None) -> Columns:
            return self

        def __len__(self) -> int:
            return 24

        def __getitem__(self, key: Any) -> Any:
            if key == "label":
                return LABELS.tolist()
            assert isinstance(key, int)
            return {"image": pictures(0)[key]}  # without a label

    given = of(pictures, labeled=Columns(), preprocessing=HOW)
    assert run(**given).after == expected
