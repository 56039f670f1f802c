"""CIFAR and STL-10 through torchvision's own readers, from small files in the published format."""

import dataclasses
import hashlib
import pickle
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from ssl_selmix import data
from ssl_selmix.algorithm import Context
from ssl_selmix.augment.tensor import Strong
from ssl_selmix.data import ImageSet
from ssl_selmix.data import manifest as manifests
from ssl_selmix.data.download import pool
from ssl_selmix.datasets import cifar10, cifar10_indices, cifar100, cifar100_indices, stl10
from ssl_selmix.runs import train
from ssl_selmix.runs.inputs import load_data
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.splits import PARTS, Counts
from ssl_selmix.training import engine
from tests.helpers.images import noise

CPU = torch.device("cpu")
CIFAR: dict[str, tuple[ModuleType, Any, int]] = {
    "CIFAR10": (cifar10, datasets.CIFAR10, 10),
    "CIFAR100": (cifar100, datasets.CIFAR100, 100),
}
SMALL = [
    *("data.labeled.largest=4", "data.labeled.rho=2", "data.validation=2", "data.download=false"),
    *("data.size=8", "model.name=cnn-4", "fixmatch.batch=4"),
]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def old_pickle(value: Mapping[str, Any]) -> bytes:
    """Protocol 2 as Python 2 and the numpy of 2009 wrote it: another module, whole numbers."""
    written = pickle.dumps(value, protocol=2)
    written = written.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    return written.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")


def write_cifar(root: Path, kind: Any, num_classes: int) -> dict[str, str]:
    """12 training and 2 test images per class, in a mixed order; returns the files' MD5."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key = "labels" if num_classes == 10 else "fine_labels"
    files = [name for name, _ in kind.train_list]
    parts = np.array_split(np.random.default_rng(1).permutation(np.arange(12 * num_classes)), 5)
    parts = parts if len(files) == 5 else [np.concatenate(parts)]
    parts.append(np.arange(2 * num_classes))
    for i, (name, part) in enumerate(zip([*files, kind.test_list[0][0]], parts, strict=True)):
        labels = (part % num_classes).tolist()
        content: dict[str, Any] = {"batch_label": f"batch {i}", key: labels}
        content["data"] = noise(len(part), 3072, seed=i)
        content["filenames"] = [f"{label}_{j}.png" for j, label in enumerate(labels)]
        if num_classes == 100:
            content["coarse_labels"] = [label // 5 for label in labels]
        (folder / name).write_bytes(old_pickle(content))
    names = {kind.meta["key"]: [f"class {i}" for i in range(num_classes)]}
    (folder / kind.meta["filename"]).write_bytes(old_pickle(names))
    return {path.name: md5(path) for path in folder.iterdir()}


def write_stl(root: Path, per_class: int = 8, unlabeled: int = 25) -> dict[str, str]:
    """Images as column-major planes, labels from 1, as in the published binaries."""
    folder = root / datasets.STL10.base_folder
    folder.mkdir(parents=True)
    labels = np.random.default_rng(2).permutation(np.arange(10).repeat(per_class)).astype(np.uint8)
    tests = np.arange(10, dtype=np.uint8).repeat(2)
    for name, count, seed in (
        *(("train_X", len(labels), 0), ("test_X", len(tests), 1)),
        ("unlabeled_X", unlabeled, 2),
    ):
        rows_first = noise(count, 3, 96, 96, seed=seed)
        (folder / f"{name}.bin").write_bytes(rows_first.transpose(0, 1, 3, 2).tobytes())
    for name, values in (("train_y", labels), ("test_y", tests)):
        (folder / f"{name}.bin").write_bytes((values + 1).tobytes())
    sums = {path.name: md5(path) for path in folder.iterdir()}
    (folder / "class_names.txt").write_text("\n".join(stl10.CLASSES) + "\n")
    (folder / "fold_indices.txt").write_text("0 1 2 \n" * 10)
    return sums


def expect(patch: pytest.MonkeyPatch, kind: Any, sums: Mapping[str, str]) -> None:
    """Let torchvision's check ask for these sums instead of the published ones."""
    for files in ("train_list", "test_list"):
        known = [[name, sums[name]] for name, _ in getattr(kind, files)]
        patch.setattr(kind, files, known)
    if hasattr(kind, "meta"):
        patch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No download leaves this machine: the archives' addresses refuse connections."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("no_proxy", "*")
    for kind in (datasets.CIFAR10, datasets.CIFAR100, datasets.STL10):
        monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{port}/{kind.filename}")


@pytest.fixture(params=["CIFAR10", "CIFAR100"])
def cifar(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path]:
    _, kind, num_classes = CIFAR[request.param]
    expect(monkeypatch, kind, write_cifar(tmp_path, kind, num_classes))
    return request.param, tmp_path


@pytest.fixture
def stl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    expect(monkeypatch, datasets.STL10, write_stl(tmp_path))
    return tmp_path


def load(module: Any, root: Path, download: bool = True, **options: Any) -> ImageSet:
    loaded: ImageSet = module.load(module.Config(root=str(root), download=download, **options))
    return loaded


def refusal(module: Any, root: Path, download: bool) -> str:
    with pytest.raises(ValueError) as caught:
        load(module, root, download)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# CIFAR.


def test_cifar_images_and_labels_are_those_of_the_files(cifar: tuple[str, Path]) -> None:
    name, root = cifar
    module, kind, num_classes = CIFAR[name]
    found = load(module, root)
    assert found.test is not None and found.test_labels is not None
    assert found.train.shape == (12 * num_classes, 3, 32, 32) and found.train.dtype == torch.uint8
    assert found.test.shape == (2 * num_classes, 3, 32, 32) and found.train.is_contiguous()
    assert found.train_labels.dtype == np.int64
    assert np.bincount(found.train_labels).tolist() == [12] * num_classes
    assert found.test_labels.tolist() == 2 * list(range(num_classes))
    assert found.class_names == tuple(f"class {i}" for i in range(num_classes))
    # Planes of red, green and blue, rows first: the published layout.
    first = (root / kind.base_folder / kind.train_list[0][0]).read_bytes()
    batch = pickle.loads(first, encoding="latin1")
    raw = torch.from_numpy(batch["data"].reshape(-1, 3, 32, 32))
    assert torch.equal(found.train[: len(raw)], raw)
    assert found.train_labels[0] == batch["labels" if num_classes == 10 else "fine_labels"][0]


def test_the_constants_are_the_published_ones() -> None:
    assert (cifar10.MEAN, cifar10.STD) == ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
    assert (cifar100.MEAN, cifar100.STD) == ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4))
    assert (stl10.MEAN, stl10.STD) == ((112.3, 108.9, 98.3), (68.5, 66.6, 68.4))


def test_the_views_are_the_published_ones(cifar: tuple[str, Path]) -> None:
    found = load(CIFAR[cifar[0]][0], cifar[1])
    assert (found.weak.pad, found.weak.flip, found.weak.padding) == (4, True, "zeros")
    assert isinstance(found.strong, Strong) and found.strong.weak == found.weak
    assert (found.strong.num_ops, found.strong.random_cutout) == (3, True)


def test_cifar_splits_are_disjoint(cifar: tuple[str, Path]) -> None:
    module, _, num_classes = CIFAR[cifar[0]]
    options: dict[str, Any] = {
        "labeled": Counts(5, rho=5),
        "unlabeled": Counts(4, rho=2),
        "validation": 3,
    }
    found = load(module, cifar[1], **options)
    split = module.Config(**options).draw(found.train_labels, num_classes, seed=0)
    everything = np.concatenate([getattr(split, part) for part in PARTS])
    assert len(np.unique(everything)) == len(everything) > 0


def test_cifar_by_files_of_indices(cifar: tuple[str, Path]) -> None:
    name, root = cifar
    module, _, num_classes = CIFAR[name]
    indexed = {"CIFAR10": cifar10_indices, "CIFAR100": cifar100_indices}[name]
    whole = load(module, root)
    of_class = [np.flatnonzero(whole.train_labels == k) for k in range(num_classes)]
    labeled = np.concatenate([places[: 3 - k % 2] for k, places in enumerate(of_class)])
    pool = np.concatenate([places[3:8] for places in of_class])
    np.save(root / "labeled.npy", labeled)
    (root / "pool.txt").write_text(" ".join(map(str, pool)))
    lists: dict[str, Any] = {
        "labeled_index": str(root / "labeled.npy"),
        "unlabeled_index": str(root / "pool.txt"),
    }
    found = load(indexed, root, **lists, validation=2)
    own = len(labeled)
    assert torch.equal(found.train[:own], whole.train[np.sort(labeled)])
    assert found.extra_unlabeled is not None
    assert torch.equal(found.extra_unlabeled, whole.train[np.sort(pool)])
    config = indexed.Config(root=str(root), **lists, validation=2)
    split = config.draw(found.train_labels, num_classes, seed=0, apart=found.apart)
    assert split.counts["labeled"] == [3 - k % 2 for k in range(num_classes)]
    assert split.counts["validation"] == [2] * num_classes and found.test is not None


def test_the_default_split_takes_every_image_of_the_largest_class() -> None:
    for module, num_classes, size in ((cifar10, 10, 5000), (cifar100, 100, 500)):
        counts = module.Config().counts(num_classes)
        assert sum(counts[part][0] for part in PARTS) == size


# STL-10.


def test_stl_images_are_upright_and_labels_start_at_0(stl: Path) -> None:
    found = load(stl10, stl, size=96)
    assert found.test is not None and found.test_labels is not None
    assert torch.equal(found.train, torch.from_numpy(noise(80, 3, 96, 96, seed=0)))
    assert torch.equal(found.test, torch.from_numpy(noise(20, 3, 96, 96, seed=1)))
    assert np.bincount(found.train_labels).tolist() == [8] * 10
    assert found.test_labels.tolist() == np.arange(10).repeat(2).tolist()
    assert found.train_labels.dtype == np.int64
    assert found.class_names == stl10.CLASSES
    assert found.extra_unlabeled is not None
    assert torch.equal(found.extra_unlabeled, torch.from_numpy(noise(25, 3, 96, 96, seed=2)))


def test_stl_class_names_are_those_of_the_file(stl: Path) -> None:
    assert tuple(datasets.STL10(stl, split="test").classes) == stl10.CLASSES


def test_stl_images_are_resized_as_torchvision_does(stl: Path) -> None:
    found = load(stl10, stl)
    assert found.train.shape == (80, 3, 32, 32) and found.train.is_contiguous()
    for i, image in enumerate(noise(80, 3, 96, 96, seed=0)[:5]):
        whole = Image.fromarray(image.transpose(1, 2, 0))
        small = np.asarray(whole.resize((32, 32), Image.Resampling.BILINEAR))
        difference = found.train[i].permute(1, 2, 0).int() - torch.from_numpy(small.copy()).int()
        assert int(difference.abs().max()) <= 1


def test_pieces_of_a_large_pool_fit_together() -> None:
    images = noise(1003, 1, 6, 6, seed=4)
    whole = pool(images, 3)
    assert torch.equal(whole[-4:], pool(images[-4:], 3))


@pytest.mark.parametrize("size", [7, 97])
def test_stl_size_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be 8 to 96 pixels, not {size}"):
        stl10.Config(size=size)


def test_stl_validation_images_are_not_training_images(stl: Path) -> None:
    """The released split validates on labeled training images; this one must not."""
    options: dict[str, Any] = {"labeled": Counts(5, rho=5), "validation": 3}
    found = load(stl10, stl, **options)
    split = stl10.Config(**options).draw(found.train_labels, 10, seed=0)
    assert len(split.validation) == 30
    assert not np.intersect1d(split.labeled, split.validation).size
    assert split.unlabeled.size == 0
    counts = stl10.Config().counts(10)
    assert counts["labeled"][0] + counts["validation"][0] == 500  # all there are


def test_stl_pool_is_the_unlabeled_images_of_unknown_class(stl: Path) -> None:
    options: dict[str, Any] = {"labeled": Counts(5, rho=5), "validation": 3}
    found = load(stl10, stl, size=8, **options)
    split = stl10.Config(**options).draw(found.train_labels, 10, seed=0)
    assembled, diagnostics = data.assemble(found, split, 0, CPU)
    assert found.extra_unlabeled is not None
    assert torch.equal(assembled.take(assembled.unlabeled), found.extra_unlabeled)
    assert diagnostics.labels.tolist() == [-1] * 25
    assert diagnostics.of(torch.zeros(25, 10)) == {}
    assert assembled.task.num_unlabeled == 25
    # Labeled and validation images are the same ones as without the pool.
    assert torch.equal(assembled.take(assembled.labeled), found.train[split.labeled])


def test_stl_labeled_images_can_join_the_pool(stl: Path) -> None:
    config = stl10.Config(Counts(5, rho=5), validation=3, labeled_in_pool=True)
    found = load(stl10, stl, size=8)
    split = config.draw(found.train_labels, 10, seed=0)
    assembled, diagnostics = data.assemble(found, split, 0, CPU)
    known = len(split.labeled)
    assert diagnostics.labels[:known].tolist() == found.train_labels[split.labeled].tolist()
    assert len(assembled.unlabeled) == known + 25


def test_stl_can_draw_a_pool_of_known_classes_instead(stl: Path) -> None:
    found = load(stl10, stl, unlabeled=Counts(2))
    assert found.extra_unlabeled is None


def test_extra_images_of_another_size_are_refused(stl: Path) -> None:
    found = load(stl10, stl, size=8)
    split = stl10.Config(Counts(5), validation=3).draw(found.train_labels, 10, seed=0)
    other = dataclasses.replace(found, extra_unlabeled=torch.zeros(2, 3, 9, 9, dtype=torch.uint8))
    with pytest.raises(
        ValueError, match=r"extra unlabeled images are \(3, 9, 9\).*make them alike"
    ):
        data.assemble(other, split, 0, CPU)


def test_the_pool_of_unknown_class_is_part_of_what_a_manifest_identifies(stl: Path) -> None:
    words = [*SMALL, f"data.root={stl}"]
    plan = Plan(Request(["fixmatch"], "stl10", settings=words))
    inputs = load_data(plan)
    manifest = manifests.content(inputs.split, inputs.images_sha256, **inputs.extra)
    assert manifest["extra_unlabeled"] == 25 and manifest["counts"]["unlabeled"] == [0] * 10
    assert manifest["meaning"]["M1"].startswith("no M1")
    plan = Plan(
        Request(
            ["fixmatch"],
            "stl10",
            settings=[*words, "data.unlabeled.largest=2", "data.unlabeled.shape=uniform"],
        )
    )
    assert load_data(plan).images_sha256 != inputs.images_sha256


def test_fixmatch_and_selmix_train_on_a_pool_of_unknown_class(stl: Path) -> None:
    words = [*SMALL, f"data.root={stl}", "selmix.batch=4"]
    plan = Plan(Request(["fixmatch", "selmix"], "stl10", settings=words))
    inputs = load_data(plan)
    net = None
    for index, stage in enumerate(plan.stages):
        algorithm = train.build(plan, index, inputs.data.task, 3, net)
        staged = inputs.data.at_stage(stage)
        evaluation = engine.evaluate(algorithm, staged, pool=algorithm.needs_pool(0))
        if algorithm.needs_pool(0):
            assert evaluation.pool_logits is not None and len(evaluation.pool_logits) == 25
            assert inputs.diagnostics.of(evaluation.pool_logits) == {}
        context = Context(0, 2, algorithm)
        algorithm.on_validation(evaluation, context)
        losses, _ = algorithm(next(algorithm.batches(staged, 0)), context)
        assert all(torch.isfinite(loss) for loss in losses.values())
        net = algorithm.export().requires_grad_(True)


# What can go wrong with the files.


@pytest.mark.parametrize("module", [cifar10, cifar100, stl10], ids=lambda m: m.__name__[20:])
@pytest.mark.parametrize("download", [False, True])
def test_missing_files_name_the_place_and_the_remedy(
    tmp_path: Path, module: Any, download: bool
) -> None:
    message = refusal(module, tmp_path, download)
    kind = {cifar10: datasets.CIFAR10, cifar100: datasets.CIFAR100, stl10: datasets.STL10}[module]
    assert f"{tmp_path / kind.base_folder} lacks" in message
    assert f"unpack {kind.url} in {tmp_path}" in message and "or set data.root" in message
    assert ("data.download=true" in message) is not download
    assert ("the download failed (" in message) is download


def test_no_folder_is_made_where_nothing_is_downloaded(tmp_path: Path) -> None:
    refusal(cifar10, tmp_path / "nowhere", download=False)
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder_is_understood(
    cifar: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(cifar[1]))
    assert len(load(CIFAR[cifar[0]][0], Path("~")).train)


@pytest.mark.parametrize("download", [False, True])
def test_one_missing_file_is_named(cifar: tuple[str, Path], download: bool) -> None:
    module, kind, _ = CIFAR[cifar[0]]
    (cifar[1] / kind.base_folder / kind.test_list[0][0]).unlink()
    assert f"lacks {kind.test_list[0][0]}" in refusal(module, cifar[1], download)


@pytest.mark.parametrize("download", [False, True])
def test_missing_names_of_classes(cifar: tuple[str, Path], download: bool) -> None:
    module, kind, _ = CIFAR[cifar[0]]
    (cifar[1] / kind.base_folder / kind.meta["filename"]).unlink()
    assert f"lacks {kind.meta['filename']}" in refusal(module, cifar[1], download)


@pytest.mark.parametrize("download", [False, True])
def test_a_damaged_file_is_named_and_not_read(cifar: tuple[str, Path], download: bool) -> None:
    module, kind, _ = CIFAR[cifar[0]]
    name = kind.train_list[-1][0]
    path = cifar[1] / kind.base_folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = refusal(module, cifar[1], download)
    assert f"{path.parent} has a damaged {name}" in message


@pytest.mark.parametrize("download", [False, True])
def test_a_truncated_stl_file_is_named(stl: Path, download: bool) -> None:
    path = stl / "stl10_binary" / "unlabeled_X.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path.parent} has a damaged {path.name}" in refusal(stl10, stl, download)


# Downloads, from a server of this test.


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test's output is for errors."""


class Serving(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that hangs up on a damaged archive is what the test is about."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which its files can be downloaded."""
    folder = tmp_path / "server"
    folder.mkdir()
    with Serving(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.02,))
        thread.start()
        yield folder, f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


@pytest.fixture
def archive(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 as an archive on the server."""
    folder, address = server
    kind = datasets.CIFAR10
    expect(monkeypatch, kind, write_cifar(folder, kind, 10))
    path = folder / str(kind.filename)
    with tarfile.open(path, "w:gz") as packed:
        packed.add(folder / kind.base_folder, kind.base_folder)
    shutil.rmtree(folder / kind.base_folder)
    monkeypatch.setattr(kind, "url", f"{address}/{kind.filename}")
    monkeypatch.setattr(kind, "tgz_md5", md5(path))
    return path


def test_missing_files_are_downloaded_once(archive: Path, tmp_path: Path) -> None:
    first = load(cifar10, tmp_path / "data")
    archive.unlink()
    assert torch.equal(load(cifar10, tmp_path / "data").train, first.train)


def test_a_damaged_file_is_replaced(archive: Path, tmp_path: Path) -> None:
    first = load(cifar10, tmp_path / "data")
    (tmp_path / "data" / datasets.CIFAR10.base_folder / "data_batch_3").write_bytes(b"nonsense")
    assert torch.equal(load(cifar10, tmp_path / "data").train, first.train)


def test_a_damaged_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-10])
    message = refusal(cifar10, tmp_path / "data", download=True)
    assert "lacks data_batch_1 and 6 more" in message and "download failed (File not" in message


def test_an_archive_that_is_not_there(archive: Path, tmp_path: Path) -> None:
    archive.unlink()
    message = refusal(cifar10, tmp_path / "data", download=True)
    assert "the download failed (HTTP Error 404: File not found)" in message
