"""Weights of labeled images: what a table may say of them, and what they do to the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix import cli
from ssl_selmix.contract import subject
from ssl_selmix.contract.subjects import make_data, make_source
from ssl_selmix.data import assemble, extraction
from ssl_selmix.data.targets import normalised
from ssl_selmix.datasets import table as plugin
from ssl_selmix.losses import LogitAdjusted
from ssl_selmix.methods import labeled
from ssl_selmix.splits import Counts, LongTailSplit

# How often the first three of eight images are there, of classes 0, 1, 2, 2, ...
TIMES = torch.tensor([2, 0, 3, 1, 1, 1, 1, 1])
Y = torch.tensor([0, 1, 2, 2, 0, 0, 1, 2])
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def supervised(**settings: object) -> Loss:
    rule = labeled.LabeledLoss(
        make_data()[0].task,
        labeled.Config(**settings),  # type: ignore[arg-type]
        0.0 if settings.get("loss") == "ldam" else 1.0,
    )
    return lambda z, y, masses: rule(z, y, 1.0, masses)


def adjusted(weights: Tensor | None = None) -> Loss:
    rule = LogitAdjusted(torch.tensor([0.6, 0.3, 0.1]), 1.0, weights)
    return lambda z, y, masses: rule(z, y if masses is None else masses)


LOSSES = {
    "adjusted": adjusted(),
    "of classes that weigh": adjusted(torch.tensor([0.5, 1.0, 1.5])),
    **{loss: supervised(loss=loss) for loss in labeled.LOSSES},
    "asymmetric, smoothed": supervised(loss="asymmetric", label_smoothing=0.3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_image_of_weight_two_is_there_twice_and_one_of_none_is_not(name: str) -> None:
    """At a full batch; in expectation at any other, for the loss is a mean over images."""
    torch.manual_seed(0)
    x, head = torch.randn(8, 5), torch.randn(3, 5, requires_grad=True)
    weights = normalised(TIMES.double().numpy(), torch.arange(8))
    assert weights is not None and float(weights.mean()) == pytest.approx(1)
    masses = weights[:, None] * F.one_hot(Y, 3)
    weighed = LOSSES[name](x @ head.T, Y, masses)
    rows = torch.arange(8).repeat_interleave(TIMES)
    repeated = LOSSES[name](x[rows] @ head.T, Y[rows], None)
    torch.testing.assert_close(weighed, repeated)
    (one,) = torch.autograd.grad(weighed, head)
    (other,) = torch.autograd.grad(repeated, head)
    torch.testing.assert_close(one, other)
    z = torch.randn(8, 3, requires_grad=True)
    (found,) = torch.autograd.grad(LOSSES[name](z, Y, masses), z)
    assert bool((found[1] == 0).all()) and bool((found[0] != 0).any())


def test_weights_of_images_are_not_divided_by_those_of_classes() -> None:
    loss, z = supervised(reweight="inverse"), torch.randn(8, 3)
    ones = F.one_hot(Y, 3).float()
    torch.testing.assert_close(loss(z, Y, ones), loss(z, Y, None))
    torch.testing.assert_close(loss(z, Y, 3 * ones), 3 * loss(z, Y, None))


# What a run draws.


def test_batches_have_the_weights_of_their_images_with_mean_one() -> None:
    source, labels = make_source(), make_source().train_labels
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 4, len(labels)).astype(float)
    split = LongTailSplit(Counts(6, rho=3), Counts(8, rho=2), validation=3, test=2).draw(
        labels, 3, seed=0
    )
    device = torch.device("cpu")
    plain, _ = assemble(source, split, 0, device)
    data, _ = assemble(replace(source, weights=weights), split, 0, device)
    expected = torch.from_numpy(weights[split.labeled] / weights[split.labeled].mean()).float()
    assert data.weights is not None
    torch.testing.assert_close(data.weights, expected)
    streams = (d.batches(("weak",), 16, 1, 0) for d in (plain, data))
    for one, other in islice(zip(*streams, strict=True), 3):
        assert one.masses is None and one.target is one.y
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)
        assert other.masses is not None and other.index_x is not None
        rows = torch.arange(len(other.y))
        torch.testing.assert_close(other.target[rows, other.y], expected[other.index_x])
        assert int((other.target > 0).sum(1).max()) == 1
    drawn = next(data.undersampled(4, 0))
    assert drawn.masses is not None and torch.equal(drawn.y, data.labels[drawn.index_x])


def test_what_is_known_of_the_pool_reaches_no_batch() -> None:
    """Annotators and weights of images that the split put into the pool are poisoned."""
    source = make_source()
    split = LongTailSplit(Counts(6, rho=3), Counts(8, rho=2), validation=3, test=2).draw(
        source.train_labels, 3, seed=0
    )
    shares = np.eye(3, dtype=np.float32)[source.train_labels]
    weights = np.ones(len(shares))
    weights[split.labeled] = np.arange(1, 1 + len(split.labeled))
    drawn = []
    for poisoned in (False, True):
        own, told = weights.copy(), shares.copy()
        if poisoned:
            own[split.unlabeled] = 1e9
            told[split.unlabeled] = told[split.unlabeled][:, ::-1]
        device = torch.device("cpu")
        data, _ = assemble(replace(source, weights=own, shares=told), split, 0, device)
        drawn.append([batch.target for batch in islice(data.batches((), 8, 0, 0), 4)])
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one, other)
    # The weights and the shares are there at all.
    assert drawn[0][0].shape == (8, 3) and len(torch.cat(drawn[0]).sum(1).unique()) > 1


def test_a_pool_whose_images_count_as_labeled_has_weights_of_one() -> None:
    data, _ = make_data()
    data = replace(data, weights=torch.full((len(data.labels),), 2.0))
    data = replace(data, shares=F.one_hot(data.labels, 3).float())
    algorithm = subject("crest").make(data)
    algorithm.selected[:3] = True  # type: ignore[index, operator]
    seen = torch.cat([b.target.sum(1) for b in islice(algorithm.batches(data, 0), 40)])
    assert set(seen.tolist()) == {1.0, 2.0}


def test_features_in_the_place_of_images_keep_their_weights() -> None:
    source = replace(make_source(), weights=np.arange(60.0))
    found = extraction.as_data(source, {"train": torch.zeros(60, 4)})
    assert found.weights is source.weights


# What a table may say.


def write(folder: Path, weights: list[str]) -> Path:
    """Two classes with as many images each as there are weights, and a test image of each."""
    from PIL import Image

    rows, rng = ["path,label,split,w"], np.random.default_rng(0)
    for name in "ab":
        for i, weight in enumerate([*weights, ""]):
            image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            image.save(folder / f"{name}{i}.png")
            rows.append(f"{name}{i}.png,{name},{'train' if i < len(weights) else 'test'},{weight}")
    rows.append("a0.png,,unlabeled,".replace("a0", "u"))
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "u.png")
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    return folder / "t.csv"


def load(file: Path, **settings: str) -> object:
    return plugin.load(plugin.Config(file=str(file), validation=1, cache="none", **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["1", "-0.5"], r"row 3: w is '-0\.5', and the weight .* 0 or more; correct it"),
        (["1", "nan"], "row 3: w is 'nan'"),
        (["inf", "1"], "row 2: w is 'inf'"),
        (["heavy", "1"], "row 2: w is 'heavy'"),
        (["1", ""], "row 3: no w; give every labeled image to train on a weight"),
    ],
)
def test_wrong_weights_are_refused_in_a_line(
    tmp_path: Path, weights: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as told:
        load(write(tmp_path, weights), weight_column="w")
    assert "\n" not in str(told.value)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.weight_column: unknown column 'v'.*split, w"):
        load(write(tmp_path, ["1", "2"]), weight_column="v")


WORDS = [
    *("train", "--dataset", "table", "data.file=t.csv", "data.validation=1", "data.cache=none"),
    *("data.weight_column=w", "model.name=cnn-4", "pictures=false", "--algo", "supervised"),
    *("supervised.steps=2", "supervised.batch=4"),
]


def test_runs_with_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ["0", "0", "0"])
    assert cli.main([*WORDS, "--out", "none"]) == 2
    assert "weights of all 4 labeled images are 0" in capsys.readouterr().err
    write(tmp_path, ["1", "2", "1"])
    assert cli.main([*WORDS, "--then", "selmix", "--out", "refused"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "data.weight_column=w: selmix takes no weights of labeled images; leave the setting" in told
    )
    assert cli.main([*WORDS, "--out", "w", "--then", "crt", "crt.steps=2", "crt.batch=4"]) == 0
    plain = [word for word in WORDS if "weight_column" not in word]
    assert cli.main([*plain, "--out", "plain"]) == 0
    models = [
        torch.load(tmp_path / f"{n}/1-supervised/model.pt", weights_only=True)
        for n in ("w", "plain")
    ]
    assert str(models[0]["state"]) != str(models[1]["state"])
    write(tmp_path, ["1", "3", "1"])
    assert (
        cli.main([*WORDS, "--out", "w", "--resume", "--then", "crt", "crt.steps=2", "crt.batch=4"])
        == 2
    )  # other weights are another run
    assert cli.main(["features", "table", *WORDS[3:8], "--init", "plain", "--out", "f"]) == 2
    assert "a folder of features keeps no weights of images" in " ".join(
        capsys.readouterr().err.split()
    )
