"""AugMix: its weights, its edges, what its chains are made of, and that a seed decides it all."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ssl_selmix.augment import image
from ssl_selmix.augment.augmix import CORRUPTIONS, OPERATIONS, AugMix, magnitudes
from ssl_selmix.augment.ops import OPS
from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.contract.subjects import make_data
from ssl_selmix.data.pool import MemoryPool
from ssl_selmix.data.workers import Reader, Request
from ssl_selmix.datasets import digits
from ssl_selmix.images.photo import Photo
from ssl_selmix.runs import views
from ssl_selmix.runs.plan import Plan
from ssl_selmix.runs.plan import Request as Asked
from ssl_selmix.runs.train import run

FIXED = Weak(pad=0, flip=False)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(num: int, channels: int = 3, size: int = 12) -> Tensor:
    return torch.randint(256, (num, channels, size, size), generator=seeded(5)).byte()


def test_the_published_operations_are_those_that_are_no_corruption() -> None:
    assert sorted(OPERATIONS) == sorted(set(OPS) - {"identity", *CORRUPTIONS})
    assert len(OPERATIONS) == 9
    params = AugMix().draw(300, seeded(0))
    assert {OPS[i] for i in params.op[params.op >= 0].tolist()} == set(OPERATIONS)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_weights_are_dirichlet_and_beta(alpha: float) -> None:
    """Means and variances of Dirichlet(alpha, ..., alpha) and of Beta(alpha, alpha)."""
    params = AugMix(width=3, alpha=alpha).draw(20_000, seeded(0))
    assert torch.allclose(params.weights.sum(1), torch.ones(20_000, dtype=torch.float64))
    expected = (1 / 3) * (2 / 3) / (3 * alpha + 1)
    assert torch.allclose(params.weights.mean(0), torch.tensor(1 / 3).double(), atol=0.01)
    assert torch.allclose(params.weights.var(0), torch.tensor(expected).double(), rtol=0.06)
    assert float(params.kept.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(params.kept.var()) == pytest.approx(0.25 / (2 * alpha + 1), rel=0.06)
    assert 0 <= float(params.kept.min()) <= float(params.kept.max()) <= 1


def test_chains_have_one_to_three_operations_or_as_many_as_asked() -> None:
    params = AugMix(width=4).draw(3000, seeded(0))
    length = (params.op >= 0).sum(2)
    assert torch.equal(params.op >= 0, torch.arange(3) < length[..., None])  # none after the end
    assert (torch.bincount(length.flatten()) / 12_000)[1:].tolist() == pytest.approx(
        [1 / 3] * 3, abs=0.02
    )
    assert AugMix(depth=5).draw(7, seeded(0)).op.shape == (7, 3, 5)
    assert bool((AugMix(depth=5).draw(7, seeded(0)).op >= 0).all())


def test_severity_bounds_the_levels() -> None:
    level = AugMix(severity=3).draw(2000, seeded(0)).level
    assert 0.01 <= float(level.min()) < 0.012 and 0.298 < float(level.max()) <= 0.3
    assert bool((AugMix(severity=0.1).draw(9, seeded(0)).level == 0.01).all())


def test_magnitudes_are_those_of_the_published_code() -> None:
    level = torch.tensor([0.0, 0.25, 0.3, 1.0], dtype=torch.float64)
    found = {name: magnitudes(name, level, 30).tolist() for name in OPERATIONS[2:]}
    assert found["rotate"] == pytest.approx([0, 7.5, 9, 30])
    assert found["shear_x"] == found["shear_y"] == pytest.approx([0, 0.075, 0.09, 0.3])
    assert found["translate_x"] == pytest.approx([0, 2.5, 3, 10])
    assert found["posterize"] == [4, 3, 3, 0]  # bits that are left
    assert found["solarize"] == pytest.approx([256, 192, 179.2, 0])
    assert magnitudes("color", level).tolist() == pytest.approx([0.1, 0.55, 0.64, 1.9])


def test_a_view_is_the_weighted_sum_of_its_chains() -> None:
    mixed = AugMix(weak=Weak(pad=1), width=2, severity=8, ops=(*OPERATIONS, *CORRUPTIONS))
    batch, params = images(40), mixed.draw(40, seeded(1))
    x = mixed.weak(batch, params.weak)
    only = replace(params, weak=Weak(pad=0, flip=False).draw(40, seeded(0)))
    one = replace(mixed, weak=FIXED, width=1)

    def chain(i: int) -> Tensor:
        """The chain alone: all weight on it, none on the weak view."""
        of: dict[str, Any] = {
            name: getattr(params, name)[:, i : i + 1] for name in ("op", "level", "sign")
        }
        full: dict[str, Any] = {
            "weights": torch.ones(40, 1).double(),
            "kept": torch.zeros(40).double(),
        }
        return one(x, replace(only, **of, **full)).double()

    w, m = params.weights.view(40, 2, 1, 1, 1), params.kept.view(-1, 1, 1, 1)
    expected = m * x + (1 - m) * (w[:, 0] * chain(0) + w[:, 1] * chain(1))
    assert float((mixed(batch, params).double() - expected).abs().max()) <= 0.5 + 1e-3
    assert not torch.equal(mixed(batch, params), x)


def test_the_weak_view_is_left_where_it_has_all_the_weight() -> None:
    mixed = AugMix(weak=Weak(pad=2))
    batch, params = images(9), mixed.draw(9, seeded(0))
    kept = replace(params, kept=torch.ones(9).double())
    assert torch.equal(mixed(batch, kept), mixed.weak(batch, params.weak))
    # Chains of nothing, mixed with what they came from, by weights whose sum is 1.
    empty = replace(params, op=torch.full_like(params.op, -1))
    assert torch.equal(mixed(batch, empty), mixed.weak(batch, params.weak))


def test_the_smallest_severity_moves_no_pixel() -> None:
    """A hundredth of 30 degrees, of a slope of 0.3, of a third of 12 pixels."""
    moving = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
    mixed = AugMix(weak=FIXED, severity=0.1, ops=moving)
    batch = images(30)
    assert torch.equal(mixed(batch, mixed.draw(30, seeded(0))), batch)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mixed", [AugMix(), AugMix(depth=2, width=1, severity=10, alpha=0.2)])
def test_the_laws_of_a_view(mixed: AugMix, channels: int) -> None:
    """A subset equals its rows, the seed decides, input and range stay."""
    batch = images(24, channels)
    before, params = batch.clone(), mixed.draw(24, seeded(7))
    full = mixed(batch, params)
    for index in ([5], [23, 0, 3, 3], []):
        rows = torch.tensor(index, dtype=torch.long)
        assert torch.equal(mixed(batch[rows], params.rows(rows)), full[rows])
    assert torch.equal(batch, before) and full.dtype == torch.uint8
    assert torch.equal(mixed(batch, mixed.draw(24, seeded(7))), full)
    assert not torch.equal(mixed(batch, mixed.draw(24, seeded(8))), full)
    floats = mixed(batch.float() / 255, params)
    assert torch.equal((floats * 255).round().byte(), full)


def test_a_resumed_run_sees_the_same_views() -> None:
    data, _ = make_data()
    assert isinstance(data.pool, MemoryPool)
    data = replace(data, pool=replace(data.pool, strong=AugMix(weak=Weak(pad=1))))
    undisturbed = data.batches(("weak", "strong"), 4, 2, 0)
    third = [next(undisturbed) for _ in range(3)][-1]
    resumed = next(data.batches(("weak", "strong"), 4, 2, 2))
    assert torch.equal(third.u[1], resumed.u[1]) and not torch.equal(third.u[1], third.u[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AugMix(width=0), "one chain or more by an alpha above 0, got width=0"),
        (lambda: AugMix(alpha=0.0), "an alpha above 0, got width=3 and alpha=0"),
        (lambda: AugMix(severity=11), "severity must lie between 0.1 and 10"),
        (lambda: AugMix(ops=("rotat",)), "'rotat'; did you mean rotate"),
        (lambda: AugMix(ops=()), "ops must name an operation"),
        (lambda: views.Config(augmix_width=2), "augmix_width=2 mixes nothing with strong=randaug"),
        (lambda: views.Config(strong="cutmix"), "strong must be one of randaugment, augmix"),
    ],
)
def test_bad_settings_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def photo(seed: int) -> bytes:
    to = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((60, 45)).save(to, "PNG")
    return to.getvalue()


def test_views_of_files_are_mixtures_of_their_weak_views(tmp_path: Path) -> None:
    mixed = AugMix(weak=FIXED)
    file = tmp_path / "0.png"
    file.write_bytes(photo(0))
    makers, key = image.views(32, mixed), (7, 3)
    one = Photo(photo(0), "")
    seen = makers["strong"](one, key)
    assert seen.shape == (32, 32, 3) and np.array_equal(makers["strong"](one, key), seen)
    assert not np.array_equal(makers["strong"](one, (7, 4)), seen)
    assert not np.array_equal(image.views(32)["strong"](one, key), seen)
    request = Request([0], (("strong", 7),), 3)
    (made,) = Reader([str(file)], 32, mix=mixed).make((request,))[0]
    assert np.array_equal(made[0].permute(1, 2, 0).numpy(), seen)


WORDS = ["views.strong=augmix", "views.augmix_severity=5", "device=cpu"]


def test_a_run_records_the_setting_and_older_runs_are_what_they_were() -> None:
    with_it = Plan(Asked(["fixmatch"], "digits", settings=WORDS)).identity()["step"]
    assert with_it["strong"] == "augmix" and with_it["augmix_severity"] == 5
    assert Plan(Asked(["fixmatch"], "digits")).identity()["step"] == {"split": False, "lazy": False}


@pytest.mark.parametrize(
    ("algorithm", "words", "message"),
    [
        (
            "supervised",
            WORDS,
            "views.strong=augmix changes nothing, for supervised makes no strong",
        ),
        ("fixmatch", ["views.augmix_depth=2"], "augmix_depth=2 mixes nothing"),
    ],
)
def test_what_would_do_nothing_is_refused(
    tmp_path: Path, algorithm: str, words: list[str], message: str
) -> None:
    words = [*words, f"{algorithm}.steps=2"]
    with pytest.raises(ValueError, match=re.escape(message)):
        run(Asked([algorithm], "digits", out=tmp_path / "run", settings=words))


def test_operations_that_a_data_set_leaves_out_stay_out() -> None:
    source = digits.load(digits.Config())
    strong = Strong(weak=source.weak, ops=("rotate", "contrast"))
    found = views.augmented(replace(source, strong=strong), views.Config(strong="augmix"))
    assert isinstance(found.strong, AugMix)  # type: ignore[union-attr]
    assert found.strong.ops == ("rotate",) and found.strong.weak == source.weak  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="none of the operations that this data set allows"):
        only = replace(source, strong=replace(strong, ops=("contrast",)))
        views.augmented(only, views.Config(strong="augmix"))
