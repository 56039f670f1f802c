"""Features in the place of images: files of all kinds, what is refused, views, whole runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import ssl_selmix
from ssl_selmix import algorithm, cli, models
from ssl_selmix.algorithms.remixmatch import ReMixMatch
from ssl_selmix.common import plugins
from ssl_selmix.contract import subjects
from ssl_selmix.data import assemble
from ssl_selmix.data.batch import SeededView
from ssl_selmix.data.features import FeatureSet
from ssl_selmix.datasets import features
from ssl_selmix.runs import cached
from ssl_selmix.splits import Counts, LongTailSplit

K, D = 3, 5
SPLIT = ["data.labeled.largest=8", "data.labeled.rho=2", "data.unlabeled.largest=8"]
SPLIT += ["data.unlabeled.rho=2", "data.validation=4"]
STEPS = ["supervised.steps=30", "supervised.evaluate_every=30", "supervised.batch=8"]


def made(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """So many features of each class, around a corner of their own."""
    labels = np.repeat(np.arange(K), num)
    noise = np.random.default_rng(seed).normal(size=(K * num, D), scale=0.3)
    return (noise + 3 * np.eye(K, D)[labels]).astype(np.float32), labels


def arrays() -> dict[str, np.ndarray]:
    """Training and test part by their documented keys."""
    (train, y), (test, test_y) = made(30), made(5, seed=1)
    return {"train": train, "train_labels": y, "test": test, "test_labels": test_y}


def as_npz(root: Path, found: dict[str, np.ndarray]) -> Path:
    np.savez(root / "f.npz", **found)  # type: ignore[arg-type]
    return root / "f.npz"


def as_folder(root: Path, found: dict[str, np.ndarray]) -> Path:
    for key, array in found.items():
        np.save(root / f"{key}.npy", array)
    return root


def as_safetensors(root: Path, found: dict[str, np.ndarray]) -> Path:
    numbers = {k: np.ascontiguousarray(v) for k, v in found.items()}
    save_file(numbers, root / "f.safetensors", {"class_names": '["a", "b", "c"]'})
    return root / "f.safetensors"


def as_npy(root: Path, found: dict[str, np.ndarray]) -> Path:
    np.save(root / "f.npy", np.concatenate([found["train"], found["test"]]))
    lines = ["file,label,part"]
    lines += [f"{i}.jpg,{y},train" for i, y in enumerate(found["train_labels"])]
    lines += [f"{i}.jpg,{y},test" for i, y in enumerate(found["test_labels"])]
    (root / "f.csv").write_text("\n".join(lines) + "\n")
    return root / "f.npy"


def load(path: Path, **settings: Any) -> FeatureSet:
    return features.load(features.Config(root=str(path), **settings))


Writer = Callable[[Path, dict[str, np.ndarray]], Path]


@pytest.mark.parametrize("write", [as_npz, as_folder, as_safetensors, as_npy])
def test_every_kind_of_file_gives_the_same_features(write: Writer, tmp_path: Path) -> None:
    found = load(write(tmp_path, arrays()))
    assert found.class_names == (tuple("abc") if write is as_safetensors else tuple("012"))
    assert found.train_labels.tolist() == arrays()["train_labels"].tolist()
    assert torch.equal(found.train.take(torch.arange(90)), torch.from_numpy(arrays()["train"]))
    assert found.test is not None and found.test_labels is not None
    assert torch.equal(found.test.take(torch.arange(15)), torch.from_numpy(arrays()["test"]))
    assert found.test_labels.tolist() == arrays()["test_labels"].tolist()
    reference = tmp_path / "reference"
    reference.mkdir()
    assert found.sha256() == load(as_npz(reference, arrays())).sha256()


@pytest.mark.parametrize(
    "names",
    [
        ("train/features", "train/labels", "test/features", "test/labels"),
        ("X_train", "y_train", "X_test", "y_test"),
        ("train", "train_y", "test", "test_y"),
        ("features", "labels", "test.x", "test.y"),
    ],
)
def test_keys_by_other_names(names: tuple[str, ...], tmp_path: Path) -> None:
    same = dict(zip(names, arrays().values(), strict=True))
    assert load(as_npz(tmp_path, same)).sha256() == load(as_npz(tmp_path, arrays())).sha256()


def test_labels_that_are_texts(tmp_path: Path) -> None:
    found = arrays()
    words = np.array(["eel", "cat", "dog"])
    found |= {key: words[found[key]] for key in ("train_labels", "test_labels")}
    read = load(as_npz(tmp_path, found))
    assert read.class_names == ("cat", "dog", "eel")
    assert read.train_labels[:1].tolist() == [2]
    told = load(as_npz(tmp_path, found | {"class_names": words}))
    assert told.class_names == tuple(words) and told.train_labels[:1].tolist() == [0]


def test_a_csv_file_of_labels_alone(tmp_path: Path) -> None:
    found = arrays()
    np.save(tmp_path / "train.npy", found["train"])
    (tmp_path / "train.csv").write_text("\n".join(map(str, found["train_labels"])))
    read = load(tmp_path, test=5)
    assert read.train_labels.tolist() == found["train_labels"].tolist() and read.test is None


def test_validation_and_unlabeled_parts_of_their_own(tmp_path: Path) -> None:
    validation, labels = made(6, seed=2)
    more = {"val": validation, "val_y": labels, "unlabeled": made(7, seed=3)[0]}
    path = as_folder(tmp_path, arrays() | more)
    unknown = Counts(0, shape="unknown")
    read = load(path, validation="folder", labeled=Counts(0, shape="all"), unlabeled=unknown)
    assert (len(read.train), read.apart) == (108, 18)
    pool, _ = read.pools(torch.device("cpu"))
    rows = torch.tensor([109, 0, 90])  # of three files
    expected = [more["unlabeled"][1], arrays()["train"][0], validation[0]]
    assert torch.equal(pool.take(rows), torch.from_numpy(np.stack(expected)))
    with pytest.raises(ValueError, match="has no part validation"):
        load(as_npz(tmp_path, arrays()), validation="folder")


def test_groups_are_in_one_part_each(tmp_path: Path) -> None:
    groups = np.array([f"p{i % 45}" for i in range(90)])  # of two images, some of two classes
    read = load(as_folder(tmp_path, arrays() | {"train_groups": groups}))
    assert read.groups is not None
    rule = LongTailSplit(Counts(0, shape="all"), Counts(0, shape="none"), validation=4)
    drawn = rule.draw(read.train_labels, K, 0, groups=read.groups)
    held, own = set(groups[drawn.validation]), set(groups[drawn.labeled])
    assert held and own and not held & own
    # What `ssl-selmix features` writes beside features has them too, so that no split cuts them.
    beside = cached._labels_of(read)
    assert np.array_equal(beside["train_groups"], read.groups)
    both = {"validation": made(6)[0], "validation_labels": made(6)[1]}
    path = as_npz(tmp_path, arrays() | {"train_groups": groups} | both)
    with pytest.raises(ValueError, match="has groups, but none of its part validation; add valid"):
        load(path, validation="folder")
    whole = as_npz(tmp_path, arrays() | both | beside | {"validation_groups": np.arange(45, 63)})
    held_apart = load(whole, validation="folder")
    assert held_apart.apart == 18
    assert np.array_equal(cached._labels_of(held_apart)["validation_groups"], np.arange(45, 63))


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "dimension": ({"test": made(5)[0][:, :4]}, "train has 5 features and test 4; compute all"),
    "rows": ({"train_labels": made(29)[1]}, "train_labels is 87 and train 90×5; give a label per"),
    "class": ({"test_labels": made(5)[1] + 1}, "labels run from 1 to 3 and there are 3 classes"),
    "kind": ({"train": made(30)[0].astype(int)}, "holds int64; features are floating-point"),
    "axes": ({"train": made(30)[0][0]}, "train is 5; it must be images × features"),
    "nan": ({"train": np.full((90, 5), np.nan)}, "train has NaN or inf in row 0"),
    "objects": ({"class_names": np.array([{}, 1], dtype=object)}, "Python objects, which might be"),
    "twice": ({"x_train": made(30)[0]}, "has both train and x_train; leave out one"),
    "views": ({"train_weak": np.zeros((90, 2, 4), np.float32)}, "views are images × views"),
    "labels": ({"test_labels": made(5)[1] / 2}, "holds float64; labels are whole numbers"),
    "groups": ({"train_groups": np.arange(89)}, "train_groups is 89 and train 90×5; give a group"),
    "measured": (
        {"train_groups": np.zeros(90)},
        "holds float64; groups are whole numbers, or text",
    ),
    "text": ({"test_labels": np.array(["x"] * 15)}, "the class 'x', which train lacks"),
    "names": ({"class_names": np.array(["a", "a", "b"])}, "two or more, each once"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    other, message = BROKEN[case]
    with pytest.raises(ValueError, match=message) as refused:
        load(as_npz(tmp_path, arrays() | other))
    assert "\n" not in str(refused.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "f.npz").write_bytes(b"PK no archive")
    (tmp_path / "f.txt").write_text("1 2 3")
    (tmp_path / "f.safetensors").write_bytes(b"x" * 9)
    np.save(tmp_path / "f.npy", made(2)[0])
    for name, message in {
        "f.npz": "cannot be read",
        "f.txt": r"none of \.npz, \.npy, \.safetensors, nor a folder",
        "f.safetensors": "cannot be read",
        "f.npy": r"needs its labels in .*f\.csv",
        "g.npz": r"no file .*g\.npz",
    }.items():
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)
    with pytest.raises(ValueError, match=r"has no features to train on .*expected are train"):
        load(as_npz(tmp_path, {"a": np.zeros(3)}))
    with pytest.raises(ValueError, match=r"needs data\.root=FILE"):
        features.load(features.Config())


def test_a_view_is_one_of_those_drawn_and_the_seed_chooses(tmp_path: Path) -> None:
    drawn = np.arange(90 * 4 * D, dtype=np.float16).reshape(90, 4, D)
    views = {"train_weak": drawn[:, :2], "train_strong": drawn}
    pool, _ = load(as_folder(tmp_path, arrays() | views)).pools(torch.device("cpu"))
    index = torch.tensor([80, 3, 3, 11, 0, 50, 60, 70])
    seen = pool.views(index, [SeededView("strong", 1), SeededView("strong", 2)])
    for i, row in zip(index.tolist(), seen[0].tolist(), strict=True):
        assert row in drawn[i].tolist()
    assert not torch.equal(seen[0], seen[1])
    again = pool.views(index, [SeededView("strong", 1)])
    assert torch.equal(again[0], seen[0])
    assert torch.equal(again.select(0, torch.tensor([5, 1])), seen[0][[5, 1]])
    weak = pool.views(index, [SeededView("weak", 7)])[0]
    assert all(
        row in drawn[i, :2].tolist() for i, row in zip(index.tolist(), weak.tolist(), strict=True)
    )


def test_without_views_all_are_the_plain_one(tmp_path: Path) -> None:
    pool, _ = load(as_npz(tmp_path, arrays())).pools(torch.device("cpu"))
    index = torch.tensor([8, 2, 30])
    views = pool.views(index, [SeededView("weak", 0), SeededView("strong", 0)])
    (plain,) = pool.plain(index, 3)
    assert torch.equal(views[0], plain) and torch.equal(views.select(1, index[:0]), plain[:0])
    assert torch.equal(views.select(1, torch.tensor([2])), plain[2:])


def test_a_part_without_the_views_of_another(tmp_path: Path) -> None:
    more = {"unlabeled": made(7)[0], "train_weak": np.zeros((90, 2, D), np.float32)}
    path = as_npz(tmp_path, arrays() | more)
    with pytest.raises(ValueError, match="not the same number of weak views of all its parts"):
        load(path, unlabeled=Counts(0, shape="unknown"))


@pytest.mark.parametrize("name", sorted(plugins.available("algorithm")))
def test_every_algorithm_trains_on_features_or_says_why_not(name: str, tmp_path: Path) -> None:
    views = {f"train_{kind}": np.repeat(made(30)[0][:, None], 2, 1) for kind in ("weak", "strong")}
    source = load(as_npz(tmp_path, arrays() | views))
    split = LongTailSplit(Counts(6, rho=3), Counts(8, rho=2), validation=3)
    drawn = split.draw(source.train_labels, K, seed=0)
    data, _ = assemble(source, drawn, seed=0, device=torch.device("cpu"))
    net = models.build(models.Config("features"), K, D)
    kind = algorithm.load(name)[1]
    turns: dict[str, Any] = {"lambda_r": 0.0} if issubclass(kind, ReMixMatch) else {}
    if kind.needs_pixels(kind.Config(**turns)):
        assert name in {"cutmix", "cdmad", "debias", "remixmatch_cdmad"}
        return
    method = subjects.subject(name).make(data.at_stage("1-test"), net, **turns)
    origin = models.build(models.Config("features"), K, D) if method.needs_origin else None
    stage = data.at_stage("1-test")
    fitted = subjects.fit(method, stage, tmp_path / "out", origin=origin).algorithm
    subjects.demand_finite(fitted, "after a few steps on features")


def test_a_run_on_features_ends_in_a_model_of_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = as_npz(tmp_path, arrays())
    words = ["--algo", "supervised", "--then", "posthoc", "--then", "selmix", "selmix.steps=3"]
    words += ["--dataset", "features", f"data.root={path}", *SPLIT, *STEPS, "pictures=false"]
    assert cli.main([*words, "--out", "run"]) == 0
    model = ssl_selmix.load("run")
    test, labels = arrays()["test"], arrays()["test_labels"]
    assert model.image_shape == (D,)
    assert (model.predict(torch.from_numpy(test)).argmax(1).numpy() == labels).mean() > 0.9
    assert cli.main(["export", "run", "--pt2", "m.pt2"]) == 0
    assert cli.main(["predict", "run", str(path)]) == 0
    for cut in (["--then", "cutmix"], ["--then", "remixmatch", "remixmatch.lambda_r=0.5"]):
        assert cli.main([*words, *cut, "--out", "cut"]) == 2
        assert f"{cut[1]} cannot work on features: it" in capsys.readouterr().err
    other = [w for w in words if not w.startswith("data.root")] + ["--preset", "none"]
    assert cli.main([*other, f"data.root={path}", "--out", "other"]) == 2
    assert "wrn-28-2 makes nothing; set model.name=features" in capsys.readouterr().err
