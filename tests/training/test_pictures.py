"""Pictures of matrices over pairs of classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ssl_selmix.training import pictures


def labels(drawn: Figure) -> list[str]:
    drawn.draw_without_rendering()
    axis = drawn.axes[0]
    columns = [tick.get_text() for tick in axis.get_xticklabels()]
    assert columns == [tick.get_text() for tick in axis.get_yticklabels()]
    return columns


def test_a_matrix_has_names_axes_and_a_scale() -> None:
    matrix = torch.tensor([[0.5, -1.0, 0], [0, 2, 0], [0, 0, 4]], dtype=torch.float64)
    drawn = pictures.figure(matrix, "confusion", ["cat", "a_$dog$", "x" * 40])
    assert labels(drawn) == ["cat", "a_$dog$", "x" * 13 + "…"]
    axis, scale = drawn.axes
    assert np.array_equal(np.asarray(axis.images[0].get_array()), matrix)
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("true class", "predicted class")
    assert axis.get_title() == "confusion" and scale.get_ylim() == (-1, 4)
    other = pictures.figure(matrix, "gain_matrix", ["a", "b", "c"]).axes[0]
    assert (other.get_ylabel(), other.get_xlabel()) == ("class of the row", "partner's class")


@pytest.mark.parametrize(("num", "shown"), [(20, 20), (21, 11), (1000, 20)])
def test_of_many_classes_some_are_named(num: int, shown: int) -> None:
    names = [f"c{k}" for k in range(num)]
    found = labels(pictures.figure(torch.eye(num), "confusion", names))
    assert len(found) == shown and found[0] == "c0" and found[1] == names[-(-num // 20)]


def test_pixels_show_row_0_on_top_and_dark_low() -> None:
    image = pictures.pixels(pictures.figure(torch.eye(2), "confusion", ["a", "b"]))
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    middle = image[image.shape[0] // 4], image[image.shape[0] // 2 + image.shape[0] // 4]
    left, right = image.shape[1] // 4, image.shape[1] // 2
    assert middle[0][left].sum() > middle[0][right].sum()
    assert middle[1][left].sum() < middle[1][right].sum()


def test_names_that_a_font_lacks_are_no_warning() -> None:
    pictures.pixels(pictures.figure(torch.ones(2, 2), "confusion", ["猫", "\U0001f436"]))
