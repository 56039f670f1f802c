"""Tensor augmentation against torchvision, and the laws of its two-stage interface."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from ssl_selmix.augment.augmix import AugMix
from ssl_selmix.augment.ops import (
    OPS,
    _gray,
    affine,
    autocontrast,
    brightness,
    color,
    contrast,
    cutout,
    equalize,
    posterize,
    sharpness,
    solarize,
)
from ssl_selmix.augment.tensor import Strong, StrongParams, Weak

SHAPES = [(c, size) for c in (1, 3) for size in (8, 32, 33)]
FACTORS = {
    "brightness": (brightness, reference.adjust_brightness),
    "color": (color, reference.adjust_saturation),
    "contrast": (contrast, reference.adjust_contrast),
    "sharpness": (sharpness, reference.adjust_sharpness),
}
PLAIN = {
    "autocontrast": (autocontrast, reference.autocontrast),
    "equalize": (equalize, reference.equalize),
}
FIXED = Weak(pad=0, flip=False)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(num: int, channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Noise, smooth, grey, two-valued and uniform images in turn."""
    generator = seeded(seed)
    batch = torch.randint(256, (num, channels, size, size), generator=generator).byte()
    ramp = torch.linspace(20, 180, size).byte()
    batch[1::5] = ramp + ramp[:, None] // 3
    batch[2::5] = batch[2::5, :1]
    batch[3::5] = (batch[3::5] > 200) * torch.tensor(77, dtype=torch.uint8)
    batch[4::5] = torch.randint(256, batch[4::5, :, :1, :1].shape, generator=generator).byte()
    return batch


def one_by_one(call: Callable[..., Any], batch: Tensor, *magnitudes: Tensor) -> Tensor:
    rows = zip(batch, *(m.tolist() for m in magnitudes), strict=True)
    return torch.stack([call(image, *rest) for image, *rest in rows])


def moved(batch: Tensor, fill: int = 0, **given: Tensor) -> Tensor:
    """Apply an affine map with every parameter zero but those given."""
    names = ("angle", "shear_x", "shear_y", "translate_x", "translate_y")
    angle, shear_x, shear_y, x, y = (given.get(n, torch.zeros(len(batch))) for n in names)
    return affine(batch, angle, shear_x, shear_y, x, y, fill)


def distinct(values: Tensor) -> list[float]:
    return sorted(set(values.flatten().tolist()))


def only(name: str, num: int, level: float, sign: int = 1, **kwargs: Any) -> tuple[Strong, Any]:
    """Return a strong view of a single known operation, and its parameters."""
    strong = Strong(weak=FIXED, num_ops=1, ops=(name,), cutout=0.0, **kwargs)
    params = strong.draw(num, seeded(0))
    params = replace(
        params, level=torch.full_like(params.level, level), sign=torch.full_like(params.sign, sign)
    )
    return strong, params


# --- Pixel functions -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_blends_equal_torchvision(name: str, channels: int, size: int) -> None:
    ours, theirs = FACTORS[name]
    batch = images(60, channels, size, seed=size)
    factor = torch.rand(60, generator=seeded(1), dtype=torch.float64) * 1.5
    # Round factors meet the whole numbers at which truncation shows an error of one rounding.
    factor[::2] = (factor[::2] * 20).round() / 20
    assert torch.equal(ours(batch, factor), one_by_one(theirs, batch, factor))


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_histogram_operations_equal_torchvision(name: str, channels: int, size: int) -> None:
    ours, theirs = PLAIN[name]
    batch = images(40, channels, size, seed=size)
    assert torch.equal(ours(batch), one_by_one(theirs, batch))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(FACTORS)), st.integers(0, 10**6), st.floats(0.0, 2.0))
def test_blends_equal_torchvision_anywhere(name: str, seed: int, factor: float) -> None:
    ours, theirs = FACTORS[name]
    batch = images(5, 3, 8, seed=seed)
    factors = torch.full((5,), factor, dtype=torch.float64)
    assert torch.equal(ours(batch, factors), one_by_one(theirs, batch, factors))


@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_posterize_and_solarize_equal_torchvision(channels: int, size: int) -> None:
    batch = images(45, channels, size)
    bits = torch.arange(45) % 9
    assert torch.equal(posterize(batch, bits), one_by_one(reference.posterize, batch, bits))
    threshold = torch.linspace(0, 255, 45)
    threshold[::3] = threshold[::3].round()
    assert torch.equal(solarize(batch, threshold), one_by_one(reference.solarize, batch, threshold))


def test_gray_equals_torchvision_on_a_grid_of_colours() -> None:
    value = torch.cat((torch.arange(0, 256, 5), torch.tensor([47, 98, 146, 199, 228, 13, 124, 9])))
    grid = torch.stack(torch.meshgrid(value, value, value, indexing="ij"))
    batch = grid.reshape(1, 3, len(value), -1).byte()
    assert torch.equal(_gray(batch).byte(), reference.rgb_to_grayscale(batch))


def test_uniform_channels_and_full_threshold_change_nothing() -> None:
    batch = torch.full((2, 3, 8, 8), 93, dtype=torch.uint8)
    assert torch.equal(autocontrast(batch), batch)
    assert torch.equal(equalize(batch), batch)
    assert torch.equal(solarize(batch, torch.full((2,), 256.0)), batch)


def test_tiny_images_are_not_sharpened() -> None:
    batch = images(2, 3, 2)
    assert torch.equal(sharpness(batch, torch.zeros(2)), batch)


@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_affine_agrees_with_torchvision(channels: int, size: int) -> None:
    num, generator = 30, seeded(size)
    batch = torch.randint(1, 256, (num, channels, size, size), generator=generator).byte()

    def uniform(bound: float) -> Tensor:
        return (2 * torch.rand(num, generator=generator, dtype=torch.float64) - 1) * bound

    angle, shear_x, shear_y = uniform(30), uniform(0.3), uniform(0.3)
    move_x, move_y = uniform(0.3 * size), uniform(0.3 * size)

    def theirs(image: Tensor, a: float, sx: float, sy: float, tx: float, ty: float) -> Any:
        shear = [math.degrees(math.atan(sx)), math.degrees(math.atan(sy))]
        return reference.affine(image, a, [tx, ty], 1.0, shear, fill=[9.0])

    expected = one_by_one(theirs, batch, angle, shear_x, shear_y, move_x, move_y)
    result = affine(batch, angle, shear_x, shear_y, move_x, move_y, fill=9)
    # float32 against float64 coordinates: only source points next to a pixel boundary may differ.
    assert (result != expected).double().mean() < 2e-4


@pytest.mark.parametrize("size", [8, 32, 33])
def test_whole_pixel_translation_equals_slicing(size: int) -> None:
    batch = images(4, 3, size)
    move_x, move_y = torch.tensor([0, 2, -3, 1]), torch.tensor([0, -1, 2, 0])
    result = moved(batch, fill=5, translate_x=move_x, translate_y=move_y)
    padded = reference.pad(batch, [3, 3, 3, 3], fill=5.0)
    for row, (x, y) in enumerate(zip(move_x.tolist(), move_y.tolist(), strict=True)):
        expected = padded[row, :, 3 - y : 3 - y + size, 3 - x : 3 - x + size]
        assert torch.equal(result[row], expected)


def test_identity_affine_and_half_turn_are_exact() -> None:
    batch = images(2, 3, 33)
    assert torch.equal(moved(batch), batch)
    turned = moved(batch, angle=torch.tensor([90.0, 180.0]))
    assert torch.equal(turned[0], batch[0].rot90(-1, (1, 2)))
    assert torch.equal(turned[1], batch[1].flip(1, 2))


def test_cutout_geometry_and_fill() -> None:
    batch = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    centre = torch.tensor([[4, 4], [0, 7], [3, 3], [5, 2]])
    result = cutout(batch, centre, torch.tensor([4, 4, 0, 3]), fill=127)
    expected = torch.zeros_like(batch)
    expected[0, :, 2:6, 2:6] = 127
    expected[1, :, 0:2, 5:8] = 127
    expected[3, :, 4:7, 1:4] = 127
    assert torch.equal(result, expected)


# --- Weak ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "mode"), [("reflect", "reflect"), ("zeros", "constant")])
@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_weak_equals_padding_slicing_and_flipping(
    padding: Any, mode: str, channels: int, size: int
) -> None:
    weak, batch = Weak(padding=padding), images(24, channels, size)
    params = weak.draw(24, seeded(3))
    padded = reference.pad(batch, [4, 4, 4, 4], padding_mode=mode)
    result = weak(batch, params)
    for row in range(24):
        top, left = int(params.top[row]), int(params.left[row])
        crop = padded[row, :, top : top + size, left : left + size]
        assert torch.equal(result[row], crop.flip(-1) if params.flip[row] else crop)


def test_weak_draws_every_offset_and_both_flips() -> None:
    params = Weak(pad=2).draw(400, seeded(0))
    assert distinct(params.top) == distinct(params.left) == [0, 1, 2, 3, 4]
    assert 120 < int(params.flip.sum()) < 280
    assert not Weak(flip=False).draw(50, seeded(0)).flip.any()


def test_switching_the_flip_off_keeps_the_crops() -> None:
    with_flip, without = Weak().draw(9, seeded(4)), Weak(flip=False).draw(9, seeded(4))
    assert torch.equal(with_flip.top, without.top)
    assert torch.equal(with_flip.left, without.left)


# --- Strong --------------------------------------------------------------------------------------


CONFIGS = [
    Strong(),
    Strong(p=0.5, levels="discrete"),
    Strong(weak=Weak(padding="zeros"), num_ops=3, random_cutout=True, magnitude=0.5),
]


@pytest.mark.parametrize("strong", [Weak(), *CONFIGS])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_subset_equals_the_rows_of_the_full_view(strong: Weak | Strong, channels: int) -> None:
    batch = images(40, channels, 8)
    params = strong.draw(40, seeded(7))
    full = strong(batch, params)  # type: ignore[arg-type]
    for index in ([5], [39, 0, 3, 3], list(range(1, 40, 2)), []):
        rows = torch.tensor(index, dtype=torch.long)
        part = strong(batch[rows], params.rows(rows))  # type: ignore[arg-type]
        assert torch.equal(part, full[rows])
        assert len(params.rows(index)) == len(index)


@pytest.mark.parametrize("strong", CONFIGS)
def test_the_seed_decides_the_view(strong: Strong) -> None:
    batch = images(16)
    first, again, other = (strong(batch, strong.draw(16, seeded(s))) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("view", [Weak(padding="zeros"), AugMix(), *CONFIGS])
def test_the_host_never_reads_the_images(view: Any) -> None:
    # A meta tensor has no values: whatever would wait for a device raises here.
    batch = torch.empty(200, 3, 8, 8, dtype=torch.uint8, device="meta")
    assert view(batch, view.draw(200, seeded(0))).device.type == "meta"


@pytest.mark.parametrize("strong", CONFIGS)
def test_the_input_is_left_alone(strong: Strong) -> None:
    batch = images(30)
    before = batch.clone()
    result = strong(batch, strong.draw(30, seeded(0)))
    strong.weak(batch, strong.weak.draw(30, seeded(0)))
    assert torch.equal(batch, before)
    assert result.shape == batch.shape
    assert result.dtype == torch.uint8


@pytest.mark.parametrize("name", OPS)
def test_single_operations_leave_input_alone(name: str) -> None:
    batch = images(6)  # equalize leaves 8×8 images alone: 64 pixels make no step of 1/255
    before = batch.clone()
    strong, params = only(name, 6, level=0.7)
    result = strong(batch, params)
    assert torch.equal(batch, before)
    assert torch.equal(result, batch) == (name == "identity")


def test_images_get_different_operations() -> None:
    params = Strong(num_ops=2).draw(300, seeded(0))
    assert params.op.shape == (300, 2)
    assert distinct(params.op) == list(range(len(OPS)))
    assert 0.0 <= float(params.level.min()) < 0.05 < 0.95 < float(params.level.max()) < 1.0
    batch = images(1).expand(30, -1, -1, -1)
    views = Strong(weak=FIXED, cutout=0.0)(batch, Strong(weak=FIXED).draw(30, seeded(0)))
    assert len({view.numpy().tobytes() for view in views}) > 20


def test_only_listed_operations_are_drawn() -> None:
    chosen = ("solarize", "rotate", "identity")
    params = Strong(ops=chosen, num_ops=3).draw(100, seeded(0))
    assert {OPS[code] for code in params.op.flatten().tolist()} == set(chosen)


def test_probability_zero_is_the_weak_view_with_cutout() -> None:
    strong = Strong(p=0.0, cutout=0.0)
    batch, params = images(9), strong.draw(9, seeded(0))
    assert torch.equal(strong(batch, params), strong.weak(batch, params.weak))
    share = (Strong(p=0.5).draw(500, seeded(0)).op < 0).double().mean()
    assert 0.4 < float(share) < 0.6


def test_magnitude_zero_changes_nothing_that_has_a_magnitude() -> None:
    ops = tuple(name for name in OPS if name not in PLAIN)
    strong = Strong(weak=FIXED, ops=ops, magnitude=0.0, cutout=0.0)
    batch = images(60)
    assert torch.equal(strong(batch, strong.draw(60, seeded(0))), batch)


def test_discrete_levels_are_tenths() -> None:
    level = Strong(levels="discrete").draw(200, seeded(0)).level
    assert distinct(level) == [k / 10 for k in range(1, 10)]


@pytest.mark.parametrize("level", [0.0, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("sign", [-1, 1])
def test_levels_reach_the_documented_magnitudes(level: float, sign: int) -> None:
    batch = images(3, 3, 32)
    factor, threshold = 1.0 - (0.95 - 0.9 * level), 256 - 256 * level
    expected: dict[str, Callable[[Tensor], Any]] = {
        "brightness": lambda x: reference.adjust_brightness(x, factor),
        "contrast": lambda x: reference.adjust_contrast(x, factor),
        "color": lambda x: reference.adjust_saturation(x, factor),
        "sharpness": lambda x: reference.adjust_sharpness(x, factor),
        "posterize": lambda x: reference.posterize(x, 4 + int(4 * level)),
        "solarize": lambda x: reference.solarize(x, threshold) if threshold < 256 else x,
        "autocontrast": reference.autocontrast,
        "equalize": reference.equalize,
        "identity": lambda x: x,
    }
    for name, call in expected.items():
        strong, params = only(name, 3, level, sign)
        assert torch.equal(strong(batch, params), one_by_one(call, batch)), name


@pytest.mark.parametrize("sign", [-1, 1])
def test_geometric_levels_reach_the_documented_magnitudes(sign: int) -> None:
    batch, level = images(3, 3, 32, seed=5), 0.37
    amount = 0.3 * level * sign
    slope = math.degrees(math.atan(amount))
    corner = [0.0, 0.0]
    expected: dict[str, Callable[[Tensor], Any]] = {
        "rotate": lambda x: reference.affine(x, 100 * amount, [0, 0], 1.0, [0.0, 0.0]),
        "shear_x": lambda x: reference.affine(x, 0, [0, 0], 1.0, [slope, 0.0], center=corner),
        "shear_y": lambda x: reference.affine(x, 0, [0, 0], 1.0, [0.0, slope], center=corner),
        "translate_x": lambda x: reference.affine(x, 0, [32 * amount, 0], 1.0, [0.0, 0.0]),
        "translate_y": lambda x: reference.affine(x, 0, [0, 32 * amount], 1.0, [0.0, 0.0]),
    }
    for name, call in expected.items():
        strong, params = only(name, 3, level, sign)
        differs = strong(batch, params) != one_by_one(call, batch)
        assert differs.double().mean() < 1e-3, name


def test_discrete_translation_is_a_whole_number_of_pixels() -> None:
    # 0.3 * 0.5 * 32 = 4.8 pixels, rounded down.
    strong, params = only("translate_x", 1, level=0.5, levels="discrete")
    batch = images(1)
    result = strong(batch, params)
    assert torch.equal(result[..., 4:], batch[..., :-4])
    assert not result[..., :4].any()


def test_rounds_follow_one_another() -> None:
    strong = Strong(weak=FIXED, num_ops=2, cutout=0.0)
    batch, params = images(25, 3, 8), strong.draw(25, seeded(2))

    def turn(k: int) -> StrongParams:
        op, level, sign = (t[:, k : k + 1] for t in (params.op, params.level, params.sign))
        return replace(params, op=op, level=level, sign=sign)

    assert torch.equal(strong(batch, params), strong(strong(batch, turn(0)), turn(1)))


def test_strong_cutout_is_half_the_side_and_clipped() -> None:
    strong = Strong(num_ops=0)
    batch, params = torch.zeros(200, 3, 32, 32, dtype=torch.uint8), strong.draw(200, seeded(0))
    hole = strong(batch, params) == 127
    area = hole[:, 0].sum((1, 2))
    assert torch.equal(hole[:, 0], hole[:, 2])
    assert int(area.max()) == 16 * 16
    assert int(area.min()) >= 8 * 8
    without = Strong(num_ops=0, cutout=0.0)
    assert not without(batch, without.draw(200, seeded(0))).any()


def test_random_cutout_varies_its_side() -> None:
    side = Strong(random_cutout=True).draw(300, seeded(0)).side
    assert 0.0 <= float(side.min()) < 0.05
    assert 0.45 < float(side.max()) < 0.5


def test_small_grey_and_oblong_images() -> None:
    strong = Strong()
    for shape in [(20, 1, 8, 8), (20, 3, 12, 20)]:
        batch = torch.randint(256, shape, generator=seeded(0)).byte()
        result = strong(batch, strong.draw(20, seeded(0)))
        assert result.shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("view", [Weak(), Strong()])
def test_floats_are_rounded_to_bytes_and_come_back(view: Any, dtype: torch.dtype) -> None:
    batch = images(10)
    params = view.draw(10, seeded(0))
    result = view(batch.to(dtype) / 255, params)
    assert result.dtype == dtype
    assert torch.equal(result, view(batch, params).to(dtype) * (1.0 / 255.0))


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Weak(pad=-1), "pad must lie between 0.*got -1.*nearest allowed value is 0"),
        (lambda: Weak(pad=1.5), "pad must be a whole number, got 1.5"),  # type: ignore[arg-type]
        (lambda: Weak(padding="reflct"), "'reflct'; did you mean reflect"),  # type: ignore[arg-type]
        (lambda: Strong(ops=("rotat",)), "'rotat'; did you mean rotate"),
        (lambda: Strong(ops=()), "ops must name an operation"),
        (lambda: Strong(num_ops=-1), "num_ops must lie"),
        (lambda: Strong(p=1.2), "p must lie between 0 and 1, got 1.2; .* value is 1"),
        (lambda: Strong(magnitude=-0.1), "magnitude must lie"),
        (lambda: Strong(cutout=math.nan), "cutout must lie"),
        (lambda: Strong(cutout_fill=300), "cutout_fill must lie"),
        (lambda: Strong(levels="discret"), "did you mean discrete"),  # type: ignore[arg-type]
    ],
)
def test_bad_settings_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_batches_are_refused() -> None:
    weak = Weak()
    params = weak.draw(2, seeded(0))
    with pytest.raises(ValueError, match=r"one set of parameters per image, got 2 for 3"):
        weak(images(3), params)
    with pytest.raises(ValueError, match="N×C×H×W"):
        weak(images(2)[0], params)
    with pytest.raises(ValueError, match="int64"):
        weak(images(2).long(), params)
    with pytest.raises(ValueError, match="pad=4 for 4×4; use padding='zeros' or a pad of 3"):
        weak(images(2, 3, 4), params)
    with pytest.raises(ValueError, match="got a mask"):
        params.rows(torch.tensor([True, False]))
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        contrast(images(2, 2), torch.ones(2))
