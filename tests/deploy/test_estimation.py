"""`ssl-selmix estimate`: what a finished run's model says about its unlabeled pool."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ssl_selmix import cli
from ssl_selmix.deploy import estimate
from ssl_selmix.label_shift import Estimate
from ssl_selmix.runs import inputs as inputs_module
from ssl_selmix.runs.inputs import Inputs
from ssl_selmix.runs.plan import Plan
from tests.helpers.runs import unbound

SETTINGS = [
    *("supervised.steps=200", "supervised.evaluate_every=200", "supervised.batch=32"),
    *("model.name=cnn-16", "data.unlabeled.shape=inverted", "data.test=5"),
    "pictures=false",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supervised run on digits whose pool has the tail the other way round."""
    folder = tmp_path_factory.mktemp("estimate") / "run"
    assert cli.main(["--algo", "supervised", *SETTINGS, "--out", str(folder)]) == 0
    return folder


def test_estimates_beat_the_assumption_that_the_pool_is_like_the_labeled_set(
    finished: Path,
) -> None:
    found = estimate.of_run(finished)
    assert found.truth is not None
    assumed = float((found.labeled - found.truth).abs().sum())
    assert set(found.found) == {"count", "soft_count", "bbse", "rlls", "em"}
    for method in ("bbse", "rlls", "em"):
        assert found.found[method].method == method
        assert found.error(method) < assumed / 2, method


def test_the_truth_of_the_pool_changes_no_estimate(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = estimate.of_run(finished, ["em"])
    reload = inputs_module.reload

    def poisoned(plan: Plan) -> Inputs:
        inputs = reload(plan)
        inputs.diagnostics.labels.fill_(-1)
        return inputs

    monkeypatch.setattr(estimate, "reload", poisoned)
    blind = estimate.of_run(finished, ["em"])
    assert blind.truth is None and honest.truth is not None
    assert torch.equal(blind.found["em"].prior, honest.found["em"].prior)
    assert "l1_error" not in blind.plain()["estimates"]["em"]


def test_the_command_prints_a_table_or_json(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["estimate", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "95 % interval (em)" in out and "L1 error" in out and "truth" in out
    assert cli.main(["estimate", str(finished), "--method", "count", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert list(plain["estimates"]) == ["count"]
    assert sum(plain["estimates"]["count"]["prior"]) == pytest.approx(1)
    assert plain["class_names"] == [str(k) for k in range(10)]


def test_json_has_no_infinity() -> None:
    half = torch.tensor([0.5, 0.5])
    found = Estimate(half, torch.stack([half, half]), float("inf"), "count", "why")
    plain = estimate.PoolEstimates(("a", "b"), half, {"em": found}, None).plain()
    assert plain["estimates"]["em"]["condition_number"] is None
    json.dumps(plain, allow_nan=False)


@pytest.mark.parametrize(
    "text", ["algorithms: null\ndataset: digits\n", "algorithms: [fixmatch]\n"]
)
def test_a_damaged_configuration_is_told(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert cli.main(["estimate", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "config.yaml is damaged (" in told and told.endswith("; restore it\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{empty}"], "is no run of ssl_selmix; it has no config.yaml"),
        (["{run}", "--method", "magic"], "invalid choice: 'magic'"),
        (["{run}", "data.validation=7"], "data.validation cannot be set here: what "),
        (["{run}", "data.root=."], "unknown key 'data.root'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: list[str],
    message: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [word.format(run=finished, empty=tmp_path) for word in words]
    try:
        code = cli.main(["estimate", *given])
    except SystemExit as error:  # argparse
        code = int(str(error.code))
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(lines) == 1 and message in lines[0]


def test_other_images_are_refused(finished: Path, tmp_path: Path) -> None:
    copy = unbound(shutil.copytree(finished, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"images_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="describes other images or another split"):
        estimate.of_run(copy)
