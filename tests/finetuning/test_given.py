"""What `finetune` takes for images and labels, and what it refuses or tells, whichever the part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ssl_selmix

K = 3
PARTS = ("labeled", "validation", "unlabeled", "test")


def images(seed: int = 0, n: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 4, 4, generator=generator), torch.arange(n) % K


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, K))


def run(model: Any = None, **changes: Any) -> Any:
    given: dict[str, Any] = {"labeled": images(1), "validation": images(2), "test": images(3)}
    given |= {"unlabeled": images(4)[0], "steps": 2, "batch": 4, "progress": False}
    given |= {"model": network() if model is None else model}
    return ssl_selmix.finetune(**given | changes)


class Items:
    """A dataset of whatever `item` makes of an image and its label."""

    def __init__(self, item: Callable[[Tensor, int], Any], x: Tensor | None = None) -> None:
        self.x, self.y = images(1) if x is None else (x, torch.arange(len(x)) % K)
        self.item = item

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.item(self.x[i], int(self.y[i]))


def changed(part: str, x: Tensor) -> dict[str, Any]:
    return {part: x if part == "unlabeled" else (x, images()[1])}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dataset", [False, True])
def test_nan_anywhere_is_told_with_the_image(part: str, value: float, dataset: bool) -> None:
    x = images(5)[0]
    x[17, 1, 2, 3] = value
    given = changed(part, x)
    if dataset:
        given = {part: Items((lambda x, y: x) if part == "unlabeled" else (lambda x, y: (x, y)), x)}
    with pytest.raises(ValueError, match=f"{part} has NaN or inf in 1 of 24 images, .* image 17"):
        run(**given)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_images_that_are_no_floats_are_refused(part: str, dtype: torch.dtype) -> None:
    x = (images(5)[0].abs() * 50).to(dtype)
    with pytest.raises(ValueError, match=rf"{part} has images of {str(dtype)[6:]}; give floats"):
        run(**changed(part, x))
    with pytest.raises(ValueError, match=f"{part} has images of"):
        run(**{part: Items((lambda x, y: x) if part == "unlabeled" else (lambda x, y: (x, y)), x)})


@pytest.mark.parametrize("part", PARTS[1:])
def test_pixels_in_0_to_255_beside_pixels_in_0_to_1_are_refused(part: str) -> None:
    x = images(5)[0].sigmoid()
    given: dict[str, Any] = {"labeled": (x, images()[1]), "validation": (x, images()[1])}
    given |= {"test": (x, images()[1]), "unlabeled": x}
    with pytest.raises(ValueError, match=f"the pixels of {part} .* are far from those of labeled"):
        run(**given | changed(part, 255 * x))


@pytest.mark.parametrize("part", PARTS[1:])
def test_other_normalisations_are_told(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert "far from" not in capsys.readouterr().out
    run(**changed(part, images(5)[0].sigmoid()))  # 0..1 beside mean 0 and standard deviation 1
    out = capsys.readouterr().out
    assert f"warning: the pixels of {part} (" in out and "normalised alike?" in out


@pytest.mark.parametrize("part", PARTS[1:])
def test_unequal_sizes_are_refused(part: str) -> None:
    with pytest.raises(ValueError, match=f"{part} has images 3×4×5 and labeled 3×4×4"):
        run(**changed(part, torch.randn(24, 3, 4, 5)))


def test_unequal_sizes_within_a_dataset_are_refused() -> None:
    def item(x: Tensor, y: int) -> tuple[Tensor, int]:
        return (x[:, :3] if y else x), y

    with pytest.raises(ValueError, match=r"unequal sizes: \(3, 4, 4\) and, image 1, \(3, 3, 4\)"):
        run(labeled=Items(item))


WRONG_LABELS = [
    (np.arange(24) % K + 0.5, "no whole numbers, the first is 0.5 of image 0"),
    (torch.tensor([1.0, 2.0, float("nan"), *[0.0] * 21]), "no whole numbers, the first is nan"),
    (["cat", "dog", "cow"] * 8, "no numbers, such as 'cat'"),
    (np.array(["0", "1", "2"] * 8), "no numbers, such as '0'"),
    (torch.eye(K).repeat(8, 1), r"shape \(24, 3\); give one class index"),
    ((torch.arange(24) % K)[:, None], r"shape \(24, 1\)"),
    (torch.arange(24) % 2 == 0, "labels of torch.bool"),
    ([None] * 24, "no numbers"),
    (torch.arange(24) % K + 1, "labels run from 1 to 3"),
    (-(torch.arange(24) % K), "labels run from -2 to 0"),
    (torch.arange(23) % K, "24 images and labels of shape"),
]


@pytest.mark.parametrize("part", ["labeled", "validation", "test"])
@pytest.mark.parametrize(("labels", "message"), WRONG_LABELS)
def test_wrong_labels_are_refused_in_every_part(part: str, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{part}.*{message}"):
        run(**{part: (images(5)[0], labels)})


@pytest.mark.parametrize("part", ["labeled", "validation", "test"])
def test_wrong_labels_of_datasets_are_refused(part: str) -> None:
    with pytest.raises(ValueError, match=f"{part} has labels that are no whole"):
        run(**{part: Items(lambda x, y: (x, y + 0.5))})
    with pytest.raises(ValueError, match=f"{part} has labels that are no numbers"):
        run(**{part: Items(lambda x, y: (x, "abc"[y]))})
    with pytest.raises(ValueError, match=f"{part}: the dataset gives Tensor without a label"):
        run(**{part: Items(lambda x, y: x)})
    with pytest.raises(ValueError, match=f"{part}: the dataset gives dictionaries with the keys a"):
        run(**{part: Items(lambda x, y: {"a": x, "b": y})})


def test_labels_as_floats_and_as_lists_are_taken() -> None:
    x, y = images(1)
    expected = run(labeled=(x, y)).after
    assert run(labeled=(x, y.tolist())).after == expected
    assert run(labeled=(x, y.double().numpy())).after == expected
    assert run(labeled=[x, y]).after == expected


@pytest.mark.parametrize("key", [("image", "label"), ("pixel_values", "labels"), ("img", "label")])
def test_datasets_of_dictionaries_are_taken(key: tuple[str, str]) -> None:
    given = Items(lambda x, y: {key[0]: x, key[1]: y})
    assert run(labeled=given, unlabeled=given).after == run(unlabeled=images(1)[0]).after


def test_data_loaders_are_taken() -> None:
    loader = DataLoader(TensorDataset(*images(1)), batch_size=5, shuffle=True)
    assert run(labeled=loader).after == run().after


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("given", ["DIR", Path("DIR")])
def test_a_path_is_answered_with_what_to_give(part: str, given: Any) -> None:
    with pytest.raises(ValueError, match=rf"{part} is the path 'DIR'.*ImageFolder"):
        run(**{part: given})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": []}, "seed must be a whole number of at least 0, not"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"augment": 42}, "augment must be a function"),
        ({"augment": lambda x: x[:, :, :2]}, r"augment made \(\d+, 3, 2, 4\)"),
        ({"augment": lambda x: None}, "augment made NoneType"),
        ({"model": 5}, "model must be an nn.Module, not int"),
        ({"labeled": (np.array([["a"]]), [0])}, "labeled has images of <U1"),
        ({"labeled": (torch.randn(24), images()[1])}, r"labeled has images of shape \(24,\)"),
        ({"unlabeled": torch.randn(0, 3, 4, 4)}, "unlabeled is empty"),
        (
            {part: (torch.randn(24, 1, 4, 4), images()[1]) for part in PARTS if part[0] != "u"}
            | {"unlabeled": None},
            "the model cannot take labeled images 1×4×4",
        ),
    ],
)
def test_other_mistakes_are_told_in_a_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run(**changes)
    assert "\n" not in str(caught.value)


def test_a_model_that_guesses_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    constant = network()
    nn.init.zeros_(constant.get_parameter("3.weight"))
    run(constant)
    assert "before any step, has a mean recall of 33.3 % and guessing 33.3 %" in (
        capsys.readouterr().out
    )


def test_a_batch_of_one_through_a_batch_norm_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Linear(8, K))
    with pytest.raises(ValueError, match=r"batch=1 gives a batch norm .*; set batch=2 or more"):
        run(model, batch=1)
    assert run(batch=1).history


class Auxiliary(nn.Module):
    """As GoogLeNet: a tuple in training mode, logits in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Flatten(), nn.Linear(48, 8)), nn.Linear(8, K)

    def forward(self, x: Tensor) -> Any:
        logits = self.fc(self.body(x))
        return (logits, logits) if self.training else logits


def test_auxiliary_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"in training mode the model gives tuple.*aux_logits"):
        run(Auxiliary())


def told(capsys: pytest.CaptureFixture[str], **given: Any) -> list[str]:
    capsys.readouterr()
    run(**given)
    return [line for line in capsys.readouterr().out.splitlines() if " as well: " in line]


def test_parts_of_their_own_images_are_not_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("validation", "labeled"), ("test", "labeled"), ("test", "validation")),
        *(("validation", "unlabeled"), ("test", "unlabeled")),
    ],
)
def test_images_in_two_parts_are_told(
    one: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    x, mixed = images(8)[0], images(9)[0]
    mixed[3:8] = x[10:15]
    (line,) = told(capsys, **changed(other, x) | changed(one, mixed))
    assert f"warning: 5 of 24 {one} images are in {other} as well: " in line


def test_a_dataset_that_is_two_parts_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    noisy = Items(lambda x, y: (x + torch.randn_like(x), y))  # an augmentation
    (line,) = told(capsys, labeled=noisy, validation=noisy)
    assert "all validation images are in labeled as well: gains are estimated and weights" in line


def test_few_validation_images_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    run(validation=images(2, 3), class_names=["cat", "dog", "[fox]"])
    out = capsys.readouterr().out
    assert (
        "a recall is uncertain (95 %) where a class has few images: [fox] (1: ± 45 points)" in out
    )
    run(validation=images(2, 60))
    assert "uncertain" not in capsys.readouterr().out


def test_an_interval_without_width_is_a_dash() -> None:
    # One test image a class, and a model that is right: every bootstrap draws the same images.
    result = run(test=images(3, 3))
    assert result.interval[0] == result.interval[1]
    assert str(result).endswith("points, 95 % interval –") and "-0.0" not in str(result)
    assert str(run(test=images(3, 300), lr=0.5, steps=8, keep="last")).endswith("]")
