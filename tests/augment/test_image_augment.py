"""Views of image files: decoded as small images are, drawn from a key alone, shaped as promised."""

import io
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ssl_selmix.augment import image
from ssl_selmix.images.decode import rgb
from ssl_selmix.images.photo import Photo, Pixels

KEY = (2**62 + 5, 3)


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> Pixels:
    size = (width, height)
    return np.asarray(cv2.resize(noise(6, 8, 3, seed=seed), size, interpolation=cv2.INTER_CUBIC))


def encoded(pixels: Any, kind: str = "JPEG", **options: Any) -> bytes:
    to = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(
        to, kind, **options
    )
    return to.getvalue()


def turned(orientation: int) -> Any:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = {
    "colour.jpg": encoded(smooth(40, 60), quality=90),
    "fine.jpg": encoded(smooth(41, 59), quality=90, subsampling=0, progressive=True),
    "grey.jpg": encoded(smooth(40, 60)[:, :, 0]),
    "cmyk.jpg": encoded(Image.fromarray(smooth(40, 60)).convert("CMYK")),
    "turned.jpg": encoded(smooth(40, 60), exif=turned(6)),
    "upright.jpg": encoded(smooth(40, 60), exif=turned(1)),
    "padded.jpg": encoded(smooth(40, 60)) + b"\0\0",
    "alpha.png": encoded(noise(40, 60, 4), "PNG"),
    "palette.png": encoded(Image.fromarray(noise(40, 60)).convert("P"), "PNG"),
    "deep.png": encoded(noise(40, 60).astype(np.uint16) * 256, "PNG"),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_the_rules_for_small_images(name: str) -> None:
    photo = Photo(FILES[name], name)
    expected = np.asarray(rgb(FILES[name], name)[0])
    assert np.array_equal(photo.pixels(1), expected)
    assert (photo.height, photo.width) == expected.shape[:2]


LARGE = {
    "colour.jpg": encoded(smooth(320, 480), quality=90),
    "turned.jpg": encoded(smooth(320, 480), exif=turned(6)),
    "whole.png": encoded(smooth(320, 480), "PNG"),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_smaller_image_is_the_same_image(name: str, factor: int) -> None:
    photo = Photo(LARGE[name], name)
    whole, small = photo.pixels(1), photo.pixels(factor)
    assert small.shape[:2] == tuple(side // factor for side in whole.shape[:2])
    expected = cv2.resize(whole, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected.astype(int)).mean() < 2


@pytest.mark.parametrize("damage", ["half", "no end", "empty", "text"])
def test_a_damaged_file_is_never_filled_up_in_silence(damage: str) -> None:
    whole = encoded(noise(64, 64, 3))
    content = {
        "half": whole[: len(whole) // 2],
        "no end": whole[: -len(whole) // 10],
        "empty": b"",
        "text": b"no image\xff\xd9",
    }[damage]
    with pytest.raises(ValueError, match=r"dog\.jpg is no readable image \(.*remove or replace"):
        Photo(content, "dog.jpg").pixels(1)


def test_how_finely_a_part_is_decoded() -> None:
    photo = Photo(FILES["colour.jpg"], "")
    found = [photo.factor(side, 2000, 224) for side in (100, 447, 448, 895, 896, 1792, 9999)]
    assert found == [1, 1, 2, 2, 4, 8, 8]


@pytest.mark.parametrize("name", ["plain", "weak", "strong"])
@pytest.mark.parametrize("shape", [(300, 500), (17, 5), (1, 1), (700, 90)])
def test_every_view_has_the_size_that_was_asked_for(name: str, shape: tuple[int, int]) -> None:
    view = image.views(32)[name](Photo(encoded(smooth(*shape), "PNG"), ""), KEY)
    assert view.shape == (32, 32, 3) and view.dtype == np.uint8


@pytest.mark.parametrize("name", ["weak", "strong"])
def test_a_view_depends_on_its_key_alone(name: str) -> None:
    photo = Photo(encoded(smooth(300, 500)), "")
    view = image.views(32)[name]
    first = view(photo, KEY)
    others = [view(photo, (KEY[0], row)) for row in range(20)]
    np.random.default_rng(0).random()
    assert np.array_equal(view(Photo(encoded(smooth(300, 500)), ""), KEY), first)
    assert np.array_equal(others[3], first)
    assert len({other.tobytes() for other in others}) == 20
    assert not np.array_equal(view(photo, (KEY[0] + 1, KEY[1])), first)


def test_the_plain_view_is_the_middle_at_256_to_224() -> None:
    """A file of 256×512 needs no resizing: its view is cut out of it."""
    pixels = smooth(256, 512)
    photo = Photo(encoded(pixels, "PNG"), "")
    assert np.array_equal(image.views(224)["plain"](photo, KEY), pixels[16:240, 144:368])


def test_weak_crops_have_the_areas_and_ratios_of_the_papers() -> None:
    """Pixels that hold their position show where a crop came from, and whether it is mirrored."""
    down, across = np.mgrid[0:200, 0:200].astype(np.uint8)
    photo = Photo(encoded(np.stack([down, across, down], 2), "PNG"), "")
    weak, mirrored, areas, ratios = image.views(16)["weak"], 0, [], []
    for row in range(400):
        view = weak(photo, (1, row)).astype(float)
        height = (view[-1, 0, 0] - view[0, 0, 0]) * 16 / 15
        width = (view[0, -1, 1] - view[0, 0, 1]) * 16 / 15
        mirrored += width < 0
        areas.append(height * abs(width) / 200**2)
        ratios.append(abs(width) / height)
    assert 160 < mirrored < 240
    assert 0.07 < min(areas) < 0.12 and 0.9 < max(areas) < 1.05
    assert 0.7 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.45
    assert 0.44 < np.mean(areas) < 0.56  # uniform from 8 to 100 %, but for what does not fit


def test_operations_are_those_for_small_images() -> None:
    from ssl_selmix.augment.ops import OPS

    assert sorted(image.operations()) == sorted(OPS)


@pytest.mark.parametrize("name", sorted(set(image.operations()) - {"identity"}))
def test_every_operation_does_something_and_differently_each_time(name: str) -> None:
    pixels = smooth(48, 48) // 2 + 20
    operation = image.operations()[name]
    found = [operation(pixels, image._Chance((0, row))) for row in range(8)]
    assert all(view.shape == pixels.shape and view.dtype == np.uint8 for view in found)
    assert any(not np.array_equal(view, pixels) for view in found)
    assert (len({view.tobytes() for view in found}) > 1) == (
        name not in ("autocontrast", "equalize")
    )


@pytest.mark.parametrize(("name", "channel"), [("shear_x", 1), ("translate_x", 1)])
def test_geometry_moves_along_its_axis_only(name: str, channel: int) -> None:
    rows = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None] + 100, (60, 60, 3)).copy()
    for row in range(6):
        moved = image.operations()[name](rows, image._Chance((0, row)))
        assert np.isin(np.unique(moved[30]), [0, 130]).all()


def test_brightness_colour_and_contrast_only_weaken() -> None:
    pixels = smooth(48, 48)
    for row in range(8):
        dark, pale, flat, soft = (
            image.operations()[name](pixels, image._Chance((1, row))).astype(float)
            for name in ("brightness", "color", "contrast", "sharpness")
        )
        assert dark.mean() < 0.96 * pixels.mean()
        assert np.ptp(pale, axis=2).mean() < 0.97 * np.ptp(pixels.astype(float), axis=2).mean()
        assert flat.std() < 0.97 * pixels.std()
        assert (
            np.abs(np.diff(soft, axis=0)).sum()
            < np.abs(np.diff(pixels.astype(float), axis=0)).sum()
        )


def test_the_square_is_clipped_grey_and_at_most_half_the_side() -> None:
    blank = np.zeros((40, 40, 3), dtype=np.uint8)
    sides = []
    for row in range(300):
        covered = image._square(blank, image._Chance((2, row))).max(axis=2) > 0
        sides.append(max(covered.max(axis=0).sum(), covered.max(axis=1).sum()))
    assert not blank.any()
    assert min(sides) == 0 and 18 <= max(sides) <= 20
    marked = image._square(blank, image._Chance((2, 0)))
    assert {tuple(p) for p in marked.reshape(-1, 3).tolist()} <= {(0, 0, 0), image.FILL}


@pytest.mark.slow
def test_importing_the_command_line_imports_no_image_library() -> None:
    code = (
        "import sys, ssl_selmix.cli, ssl_selmix.runs.train, ssl_selmix.datasets.digits; "
        "heavy = ('albumentations', 'cv2', 'torchvision'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (found.stdout, found.stderr) == ("[]\n", "")
