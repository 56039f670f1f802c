"""The study of mixing: ways of one length are compared; true partners are of their true class."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.synthetic import Sizes, make_data, network
from studies import mixing
from studies.true_partners import TruePartners


def test_the_worst_class_is_interpolated_at_the_same_way() -> None:
    def row(*pairs: tuple[float, float]) -> dict[int, dict[str, float]]:
        return {seed: {"way": way, "min_recall": worst} for seed, (way, worst) in enumerate(pairs)}

    rows = {f"none-{rate}": row((way, worst)) for rate, way, worst in
            zip(mixing.RATES, (0.1, 0.2, 0.4, 0.8), (0.1, 0.2, 0.4, 0.3), strict=True)}  # fmt: skip
    rows["mixing-0.3"] = row((0.1 * 2**1.5, 0.35))
    rows["mixing-0.03"] = row((0.9, 0.5))
    assert mixing.at_length(rows, "0.3")[0] == [pytest.approx(0.05)]
    assert mixing.at_length(rows, "0.03") == ([], [])  # further than any without mixing


def test_rows_have_the_seeds_that_all_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"start", "trusted-mixing", "trusted-none"}
    names |= {f"{how}-{rate}" for how in ("mixing", "none") for rate in mixing.RATES}
    names |= {row for pair in mixing.PAIRS for row in pair}
    found = [
        {"start": start, "row": row, "seed": seed, "way": 1.0}
        | {"mean_recall": 0.5, "min_recall": 0.25, "validation": 0.3}
        for start in mixing.STARTS for row in names for seed in range(3)
        if (row, seed) != ("trusted-none", 1)
    ]  # fmt: skip
    file = tmp_path / "mixing.json"
    file.write_text(json.dumps(found))
    mixing.main(["table", str(file)])
    told = capsys.readouterr().out
    assert (
        "length-32, n = 2" in told and "| trusted-none | 50.0 ± 0.0 | 25.0 ± 0.0 | 1.00 |" in told
    )


def test_partners_are_of_their_true_class(tmp_path: Path) -> None:
    data = make_data(Sizes(size=8, labeled=20, unlabeled=20))
    truth = torch.arange(int(data.unlabeled.max()) + 1) % 10
    np.save(tmp_path / "labels.npy", truth.numpy())
    made = TruePartners(
        network("cnn-8", data), data.task, TruePartners.Config(labels=str(tmp_path / "labels.npy"))
    )
    next(made.batches(data, 0))
    assert torch.equal(made.pairing.pseudo_labels, truth[data.unlabeled])
    with pytest.raises(ValueError, match="is no file; name train_labels"):
        TruePartners.Config(labels="nowhere.npy")
