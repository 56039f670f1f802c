import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssl_selmix.common import config
from ssl_selmix.data import manifest as manifests
from ssl_selmix.data.source import sha256_of_arrays
from ssl_selmix.splits import (
    NOT_DRAWN,
    PARTS,
    SHAPES,
    Counts,
    LongTailSplit,
    long_tail_counts,
)

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "golden" / "dataset_counts.json").read_text()
)
CIFAR = sorted(name for name in GOLDEN if name.startswith("cifar"))

RULE = LongTailSplit(Counts(12, rho=6), Counts(20, rho=4), validation=3, test=2)
LABELS = np.arange(5).repeat(40)

seeds = st.integers(0, 2**40)
counts_of_a_part = st.builds(
    Counts,
    st.integers(8, 20),
    rho=st.floats(1, 8),
    reverse=st.booleans(),
    shape=st.sampled_from([shape for shape in SHAPES if shape not in NOT_DRAWN]),
)
rules = st.builds(
    LongTailSplit,
    counts_of_a_part,
    counts_of_a_part | st.just(Counts(0, shape="unknown")),
    validation=st.integers(0, 6),
    test=st.none() | st.integers(0, 6),
    labeled_in_pool=st.booleans(),
)


@st.composite
def label_arrays(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], int]:
    """Shuffled labels, enough of each class for every rule above, some of them unknown (-1)."""
    num_classes = draw(st.integers(2, 6))
    sizes = draw(st.lists(st.integers(52, 70), min_size=num_classes, max_size=num_classes))
    labels = np.concatenate([np.arange(num_classes).repeat(sizes), np.full(20, -1)])
    return np.random.default_rng(draw(seeds)).permutation(labels), num_classes


few = settings(max_examples=30, deadline=None)


@pytest.mark.parametrize("name", CIFAR)
def test_published_cifar_counts(name: str) -> None:
    setting = GOLDEN[name]
    p = setting["params"]
    labeled = long_tail_counts(p["N1"], p["imbalance_l"], p["num_classes"])
    unlabeled = long_tail_counts(p["M1"], p["imbalance_u"], p["num_classes"])
    assert labeled == setting["exclude_labeled"]["labeled"]
    assert unlabeled == setting["exclude_labeled"]["unlabeled"]
    # There, the unlabeled pool may repeat the labeled images. Here, M1 never counts them.
    union = [n + m for n, m in zip(labeled, unlabeled, strict=True)]
    assert union == setting["include_labeled"]["unlabeled"]


@pytest.mark.parametrize("rho", [10, 100])
def test_published_stl10_counts(rho: int) -> None:
    assert long_tail_counts(450, rho, 10) == GOLDEN[f"stl10_N1-450_rl-{rho}"]["labeled"]


def test_published_imagenet100_counts() -> None:
    setting = GOLDEN["imagenet100_N1-433_M1-866_rl-10_ru-10"]
    assert long_tail_counts(433, 10, 100) == setting["labeled"]
    assert long_tail_counts(866, 10, 100) == setting["unlabeled"]


def test_inverted_tail_keeps_the_published_2999_and_reverse_says_it_directly() -> None:
    assert Counts(30, rho=0.01).counts(10)[-1] == 2999
    inverted = long_tail_counts(3000, 100, 10)[::-1]
    assert Counts(3000, rho=100, reverse=True).counts(10) == inverted
    assert Counts(3000, rho=100, shape="inverted").counts(10) == inverted
    twice = Counts(3000, rho=100, shape="inverted", reverse=True)
    assert twice.counts(10) == inverted[::-1]


@pytest.mark.parametrize("name", CIFAR)
def test_published_pools_with_and_without_the_labeled_images(name: str) -> None:
    setting = GOLDEN[name]
    p = setting["params"]
    rule = LongTailSplit(
        Counts(p["N1"], p["imbalance_l"]), Counts(p["M1"], p["imbalance_u"]), validation=1
    )
    assert rule.counts(p["num_classes"])["unlabeled"] == setting["exclude_labeled"]["unlabeled"]
    rule.labeled_in_pool = True
    counts = rule.counts(p["num_classes"])
    assert counts["unlabeled"] == setting["include_labeled"]["unlabeled"]
    assert counts["labeled"] == setting["include_labeled"]["labeled"]


def test_shapes_of_a_pool() -> None:
    """middle and head_tail by hand from SimPro's description, with its N = 400, rho = 100."""
    tail = [400, 239, 143, 86, 51, 30, 18, 11, 6, 4]
    shapes = {
        "long_tail": tail,
        "uniform": [400] * 10,
        "inverted": tail[::-1],
        "middle": [6, 18, 51, 143, 400, 239, 86, 30, 11, 4],
        "head_tail": [239, 86, 30, 11, 4, 6, 18, 51, 143, 400],
        "unknown": [0] * 10,
        "all": [0] * 10,
        "rest": [0] * 10,
        "none": [0] * 10,
    }
    assert tuple(shapes) == SHAPES
    for shape, counts in shapes.items():
        part = Counts(0 if shape in NOT_DRAWN else 400, rho=100, shape=shape)
        assert part.counts(10) == counts
        part.reverse = True
        assert part.counts(10) == counts[::-1]


@given(st.integers(1, 500), st.floats(1, 200), st.integers(2, 120))
def test_shapes_only_order_the_long_tail(n: int, rho: float, k: int) -> None:
    tail = long_tail_counts(n, rho, k)
    middle, ends = (Counts(n, rho, shape=s).counts(k) for s in ("middle", "head_tail"))
    for counts in (middle, ends, Counts(n, rho, shape="inverted").counts(k)):
        assert sorted(counts, reverse=True) == tail
    top = (k - 1) // 2
    assert middle[top] == n
    assert middle[: top + 1] == sorted(middle[: top + 1])
    assert middle[top:] == sorted(middle[top:], reverse=True)
    low = k // 2
    assert ends[-1] == n and ends[0] == tail[1]
    assert ends[:low] == sorted(ends[:low], reverse=True) and ends[low:] == sorted(ends[low:])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Counts(5, shape="midle"), "shape: unknown shape 'midle'; did you mean middle"),
        (Counts(5, shape="unknown"), "draws no image, got unlabeled.largest=5; set .*largest=0"),
        (Counts(5, rho=0.1, shape="inverted"), "rho=0.1; set unlabeled.rho=10, or shape=long_tail"),
        (Counts(5, rho=0.5, shape="middle"), "shape=middle orders a tail that falls"),
    ],
)
def test_shapes_without_meaning_are_refused(part: Counts, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^unlabeled\..*{message}"):
        LongTailSplit(Counts(5), part, validation=1)
    with pytest.raises(ValueError):
        part.counts(3)


def test_a_share_of_every_class_is_labeled_and_the_rest_is_the_pool() -> None:
    """A tenth of small ImageNet-127 is labeled, rounded as the published code rounds it."""
    labels = np.repeat([0, 1, 2], [104, 45, 15])
    rule = LongTailSplit(Counts(0, shape="0.1"), Counts(0, shape="rest"), validation=5)
    split = rule.draw(labels, 3, seed=0)
    assert split.counts["labeled"] == [round(10.4), round(4.5), round(1.5)] == [10, 4, 2]
    assert split.counts["unlabeled"] == [104 - 15, 45 - 9, 15 - 7]
    split.verify(labels, 3)
    rule.labeled_in_pool = True
    assert rule.draw(labels, 3, seed=0).counts["unlabeled"] == [99, 40, 10]
    apart = rule.draw(np.r_[labels, 0, 1, 2].repeat(5), 3, seed=0, apart=15)
    assert apart.counts["labeled"] == [52, 22, 8] and apart.validation.min() >= 5 * len(labels)
    assert apart.counts["unlabeled"] == [520, 225, 75]


def test_a_share_of_every_class_is_the_pool() -> None:
    rule = LongTailSplit(Counts(0, shape="all"), Counts(0, shape="0.5"), validation=0)
    assert rule.draw([0] * 8 + [1] * 4, 2, seed=0).counts["labeled"] == [4, 2]


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "message"),
    [
        (Counts(0, shape="all"), Counts(0, shape="rest"), "leaves nothing for unlabeled.shape=re"),
        (Counts(0, shape="rest"), Counts(5), "labeled.shape=rest leaves no labeled image"),
        (Counts(9, shape="0.1"), Counts(5), "shape=0.1 draws no image, got labeled.largest=9"),
        (Counts(0, shape="0.0"), Counts(5), "labeled.shape: unknown shape '0.0'"),
    ],
)
def test_shares_and_rests_without_meaning(labeled: Counts, unlabeled: Counts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LongTailSplit(labeled, unlabeled, validation=1)


def test_labeled_images_are_always_drawn() -> None:
    with pytest.raises(ValueError, match=r"^labeled.shape=unknown leaves no labeled image"):
        LongTailSplit(Counts(0, shape="unknown"), Counts(5), validation=1)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (RULE, "of the largest class; labeled images are not in the unlabeled pool and not"),
        (LongTailSplit(Counts(5), Counts(5, shape="uniform"), 1), "images of every class;"),
        (LongTailSplit(Counts(5), Counts(0, shape="unknown"), 1), "no M1: .* of unknown classes"),
        (LongTailSplit(Counts(5), Counts(5), 1, labeled_in_pool=True), "are in the unlabeled pool"),
    ],
)
def test_a_manifest_says_what_m1_means(rule: LongTailSplit, words: str) -> None:
    assert re.search(words, manifests.content(rule.draw(LABELS, 5, 0))["meaning"]["M1"])


def test_labels_and_parts_are_verified() -> None:
    split = RULE.draw(LABELS, 5, 0)
    split.verify(LABELS, 5)
    with pytest.raises(ValueError, match="of 5 classes and the data set has 6"):
        split.verify(LABELS, 6)
    with pytest.raises(ValueError, match="and there are 30; use the data set"):
        split.verify(LABELS[:30], 5)
    with pytest.raises(ValueError, match="use the labels that the split was drawn on"):
        split.verify(LABELS[::-1], 5)


@given(st.integers(1, 10_000), st.floats(1, 1000), st.integers(2, 200))
def test_counts_fall_from_largest_to_largest_over_rho(n: int, rho: float, k: int) -> None:
    counts = long_tail_counts(n, rho, k)
    assert len(counts) == k
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == n
    # 121 / 1.1 is just below 110, the power is not: the published rule takes the larger.
    assert int(n / rho) <= counts[-1] <= n / rho + 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10.0, 10), "at least 1 image, got 0"),
        ((10, 0.0, 10), "positive and finite, got 0"),
        ((10, -1.0, 10), "positive and finite, got -1"),
        ((10, float("nan"), 10), "positive and finite, got nan"),
        ((10, float("inf"), 10), "positive and finite, got inf"),
        ((10, 10.0, 1), "at least 2 classes, got 1"),
    ],
)
def test_impossible_tails_are_refused(arguments: tuple[int, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        long_tail_counts(*arguments)


@few
@given(rules, label_arrays(), seeds)
def test_parts_are_disjoint_and_have_the_counts_asked_for(
    rule: LongTailSplit, data: tuple[npt.NDArray[np.int64], int], seed: int
) -> None:
    labels, num_classes = data
    split = rule.draw(labels, num_classes, seed)
    split.verify(labels, num_classes)
    pool = split.unlabeled
    if rule.labeled_in_pool:
        assert np.isin(split.labeled, pool).all()
        pool = pool[~np.isin(pool, split.labeled)]
    everything = np.concatenate([split.labeled, pool, split.validation, split.test])
    assert len(np.unique(everything)) == len(everything)
    for part, counts in rule.counts(num_classes).items():
        indices = getattr(split, part)
        assert indices.dtype == np.int64
        assert (np.diff(labels[indices]) >= 0).all()
        assert np.bincount(labels[indices], minlength=num_classes).tolist() == counts
        assert split.counts[part] == counts


@few
@given(rules, label_arrays(), seeds)
def test_a_seed_repeats_its_draw_and_another_does_not(
    rule: LongTailSplit, data: tuple[npt.NDArray[np.int64], int], seed: int
) -> None:
    first = rule.draw(*data, seed)
    again, other = rule.draw(*data, seed), rule.draw(*data, seed + 1)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(first, part), getattr(again, part))
    assert first.labeled.tolist() != other.labeled.tolist()


@few
@given(rules, counts_of_a_part, label_arrays(), seeds)
def test_another_unlabeled_tail_leaves_the_other_parts_alone(
    rule: LongTailSplit,
    unlabeled: Counts,
    data: tuple[npt.NDArray[np.int64], int],
    seed: int,
) -> None:
    one = rule.draw(*data, seed)
    two = LongTailSplit(rule.labeled, unlabeled, rule.validation, rule.test).draw(*data, seed)
    for part in ("labeled", "validation", "test"):
        np.testing.assert_array_equal(getattr(one, part), getattr(two, part))


@few
@given(rules, label_arrays(), seeds)
def test_another_class_does_not_matter(
    rule: LongTailSplit, data: tuple[npt.NDArray[np.int64], int], seed: int
) -> None:
    labels, num_classes = data
    more = np.concatenate([labels, np.full(9, num_classes - 1)])
    one, two = rule.draw(labels, num_classes, seed), rule.draw(more, num_classes, seed)
    for part in PARTS:
        a, b = getattr(one, part), getattr(two, part)
        same = labels[a] < num_classes - 1
        np.testing.assert_array_equal(a[same], b[more[b] < num_classes - 1])


def test_a_draw_is_pinned() -> None:
    # Saved manifests outlive a change of this number, but runs that only give a seed do not.
    split = LongTailSplit(Counts(2), Counts(2), validation=1).draw(np.arange(2).repeat(8), 2, 0)
    assert {part: getattr(split, part).tolist() for part in PARTS} == {
        "labeled": [1, 6, 8, 9],
        "unlabeled": [3, 5, 10, 14],
        "validation": [4, 15],
        "test": [],
    }


def test_a_class_that_is_too_small_is_named_with_what_it_lacks() -> None:
    with pytest.raises(
        ValueError, match=r"class 0 has 10 images, the split needs 37 \(2 test \+ 3"
    ):
        RULE.draw(np.arange(5).repeat(10), 5, 0)
    labels = np.arange(3).repeat([40, 40, 4])
    with pytest.raises(ValueError, match=r"class 2 \(ship\) has 4 images.*hold out fewer"):
        RULE.draw(labels, 3, 0, class_names=["cat", "dog", "ship"])


def test_a_class_without_labeled_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"class 3 would get no labeled image.*raise largest"):
        LongTailSplit(Counts(5, rho=10), Counts(5), validation=1).draw(LABELS, 5, 0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.eye(5), "1-D array of integers, got shape"),
        (LABELS.astype(np.float32), "dtype float32"),
        (LABELS + 1, "below num_classes 5, got 5"),
    ],
)
def test_unusable_labels_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RULE.draw(labels, 5, 0)


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="validation images per class cannot be negative, got -1"):
        LongTailSplit(Counts(5), Counts(5), validation=-1).draw(LABELS, 5, 0)
    with pytest.raises(ValueError, match="seed of a split must be 0 or larger, got -3"):
        RULE.draw(LABELS, 5, -3)


@settings(few, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rule=rules, data=label_arrays(), seed=seeds)
def test_manifest_round_trip(
    tmp_path: Path,
    rule: LongTailSplit,
    data: tuple[npt.NDArray[np.int64], int],
    seed: int,
) -> None:
    split = rule.draw(*data, seed)
    path = tmp_path / "manifest.json"
    manifests.save(split, path, images_sha256="abc", dataset="digits")
    loaded = manifests.load(path, images_sha256="abc")
    assert loaded.rule == rule
    assert manifests.content(loaded, "abc", dataset="digits") == manifests.content(
        split, "abc", dataset="digits"
    )
    assert manifests.read(path) == manifests.content(split, "abc", dataset="digits")
    assert list(tmp_path.iterdir()) == [path]


def test_manifest_states_counts_and_the_meaning_of_the_sizes() -> None:
    manifest = manifests.content(RULE.draw(LABELS, 5, 7))
    assert manifest["counts"]["unlabeled"] == long_tail_counts(20, 4, 5)
    unlabeled = {"largest": 20, "rho": 4, "reverse": False, "shape": "long_tail"}
    assert manifest["rule"]["unlabeled"] == unlabeled
    assert manifest["seed"] == 7
    assert "largest class" in manifest["meaning"]["N1"]
    assert "not in the unlabeled pool" in manifest["meaning"]["M1"]


def _move_a_validation_image(manifest: dict[str, Any]) -> None:
    manifest["indices"]["labeled"].append(manifest["indices"]["validation"].pop())


def _swap_one_index(manifest: dict[str, Any]) -> None:
    manifest["indices"]["labeled"][0] += 1


def _change_a_count(manifest: dict[str, Any]) -> None:
    manifest["counts"]["unlabeled"][0] += 1


@pytest.mark.parametrize(
    "poison", [_move_a_validation_image, _swap_one_index, _change_a_count], ids=lambda f: f.__name__
)
def test_a_poisoned_manifest_is_refused(poison: Any, tmp_path: Path) -> None:
    manifest = manifests.content(RULE.draw(LABELS, 5, 0))
    poison(manifest)
    path = tmp_path / "poisoned.json"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"poisoned\.json: the indices do not match"):
        manifests.load(path)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"indices": 3}', '{"indices": {"labeled": [0.5]}}'],
)
def test_a_file_that_is_no_manifest_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is not a split manifest"):
        manifests.read(path)


def test_a_manifest_without_a_rule_is_refused(tmp_path: Path) -> None:
    manifest = manifests.content(RULE.draw(LABELS, 5, 0))
    del manifest["rule"]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"no \['rule'\]"):
        manifests.load(path)


def test_a_manifest_of_other_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    manifests.save(RULE.draw(LABELS, 5, 0), path, images_sha256="one")
    with pytest.raises(ValueError, match=r"m\.json: the split was drawn on other images"):
        manifests.load(path, images_sha256="two")


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    split, path = RULE.draw(LABELS, 5, 0), tmp_path / "m.json"
    manifests.save(split, path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        manifests.save(split, path, note=object())
    with pytest.raises(ValueError, match="already has the keys"):
        manifests.save(split, path, counts={})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_editing_the_rule_later_does_not_change_a_split() -> None:
    rule = LongTailSplit(Counts(5), Counts(5), validation=1)
    split = rule.draw(LABELS, 5, 0)
    rule.labeled.largest = 99
    assert (
        manifests.content(
            split,
        )["rule"]["labeled"]["largest"]
        == 5
    )


def test_the_rule_is_a_structured_configuration() -> None:
    settings = config.flatten({"data": RULE.settings()}) | {"data.unlabeled.rho": 2.5}
    rule = config.compose({"data": LongTailSplit}, [("rule", settings | {"data.test": None})])[0]
    rule = rule["data"]
    assert rule == LongTailSplit(Counts(12, 6.0), Counts(20, 2.5), validation=3, test=None)


def test_array_digest_sees_values_shape_and_type_but_not_memory_layout() -> None:
    a = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert sha256_of_arrays(a) == sha256_of_arrays(np.asfortranarray(a))
    assert sha256_of_arrays(a) == sha256_of_arrays(a.astype(">i2"))
    digests = [sha256_of_arrays(a), sha256_of_arrays(a + 1), sha256_of_arrays(a.reshape(3, 2))]
    digests += [sha256_of_arrays(a.astype(np.int32)), sha256_of_arrays(a[:0])]
    assert len(set(digests)) == 5
    assert sha256_of_arrays(a, a) != sha256_of_arrays(a)
    with pytest.raises(ValueError, match="Python objects"):
        sha256_of_arrays(np.array([object()]))


# All labeled images as they are.


def test_all_is_what_the_other_parts_leave() -> None:
    labels = np.repeat([0, 1, 2], [20, 12, 7])
    rule = LongTailSplit(Counts(0, shape="all"), Counts(4, rho=2), validation=2, test=1)
    split = rule.draw(labels, 3, seed=0)
    assert split.counts == {
        "labeled": [13, 7, 2],
        "unlabeled": [4, 2, 2],
        "validation": [2, 2, 2],
        "test": [1, 1, 1],
    }
    split.verify(labels, 3)
    everything = np.sort(np.concatenate([getattr(split, part) for part in PARTS]))
    np.testing.assert_array_equal(everything, np.arange(39))
    assert (
        "all"
        in manifests.content(
            split,
        )["meaning"]
    )
    other = LongTailSplit(Counts(2), Counts(2), validation=2).draw(labels, 3, seed=0)
    assert "all" not in manifests.content(other)["meaning"]  # whose digest names committed results


def test_all_counts_labeled_images_in_the_pool() -> None:
    labels = np.repeat([0, 1], [9, 5])
    rule = LongTailSplit(
        Counts(0, shape="all"), Counts(0, shape="unknown"), validation=1, labeled_in_pool=True
    )
    split = rule.draw(labels, 2, seed=0)
    assert split.counts["labeled"] == split.counts["unlabeled"] == [8, 4]
    split.verify(labels, 2)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LongTailSplit(Counts(5, shape="all"), Counts(3), 1), "set labeled.largest=0"),
        (lambda: LongTailSplit(Counts(5), Counts(0, shape="all"), 1), "unlabeled.shape=all would"),
    ],
)
def test_all_is_for_labeled_images_and_has_no_largest_class(make: Any, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        make()


def test_a_class_of_which_nothing_is_left_is_named() -> None:
    rule = LongTailSplit(Counts(0, shape="all"), Counts(0, shape="unknown"), validation=3)
    with pytest.raises(ValueError, match=r"class 1 \(eel\) has 3 images and the other parts take"):
        rule.draw(np.repeat([0, 1], [9, 3]), 2, seed=0, class_names=("cat", "eel"))
    with pytest.raises(ValueError, match=r"class 1 has 2 images, the split needs 3"):
        rule.draw(np.repeat([0, 1], [9, 2]), 2, seed=0)
