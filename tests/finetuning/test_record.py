"""Where a fine-tuned model goes from here: a file of tensors, a comparison, another run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ssl_selmix
from ssl_selmix import cli, models
from ssl_selmix.compare import methods, reading
from ssl_selmix.runs.folder import RunError, RunFolder
from tests.finetuning.test_given import images, network, run
from tests.helpers.runs import SMALL


def same(model: nn.Module, file: Path) -> bool:
    tensors = torch.load(file, weights_only=True)
    state = model.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[k], tensors[k]) for k in state)


def test_a_result_is_saved_and_loaded(tmp_path: Path) -> None:
    result = run(steps=6, lr=0.5)
    assert same(result.model, result.save(tmp_path / "tuned.pt"))
    fresh = network()
    fresh.load_state_dict(torch.load(tmp_path / "tuned.pt", weights_only=True))
    x = images(9)[0]
    assert torch.equal(fresh.eval()(x), result.model.eval()(x))
    with pytest.raises(ValueError, match=r"tuned\.pt exists and is not overwritten"):
        result.save(tmp_path / "tuned.pt")


def test_folders_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [run(steps=6, lr=lr, out=tmp_path / str(lr)) for lr in (0.5, 0.05)]
    for result, lr in zip(results, (0.5, 0.05), strict=True):
        assert same(result.model, tmp_path / str(lr) / "model.pt")
        found = RunFolder(tmp_path / str(lr)).results
        assert found.start is not None and found.start.test.plain() == result.before
        assert found.stages[0].test.plain() == result.after
    runs, notes = reading.read([tmp_path])
    groups, _ = methods.group(reading.with_parents(runs)[0])
    assert len(runs) == 2 and len(groups) == 1 and not notes
    assert [row.name.partition(" [")[0] for row in groups[0].rows].count("given weights") == 1
    assert cli.main(["compare", str(tmp_path)]) == 0
    assert "given weights + selmix" in capsys.readouterr().out


def test_a_folder_has_the_offsets_before_and_after_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(steps=6, lr=0.5, posthoc=True, wise_ft=True, out=tmp_path / "o")
    found = RunFolder(tmp_path / "o").results
    names = ["selmix", "wise_ft", "posthoc"]
    assert [stage.algorithm for stage in found.stages] == names
    reached = [stage.test.plain() for stage in found.stages]
    assert reached == [f for name, f in result.rows.items() if name.startswith("SelMix")]
    handed_on = [stage.handed_on_sha256 for stage in found.stages]
    begun = [stage.started_from.sha256 for stage in found.stages if stage.started_from]
    assert found.start is not None and begun == [found.start.handed_on_sha256, *handed_on[:-1]]
    beside = RunFolder(tmp_path / "o" / "posthoc").results
    assert beside.stages[0].test.plain() == result.rows["posthoc"]
    assert cli.main(["compare", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for chain in (["posthoc"], names[:1], names[:2], names):
        assert f" {' + '.join(['given weights', *chain])} " in told, chain


def test_what_needs_a_network_by_name_says_so(tmp_path: Path) -> None:
    run(out=tmp_path / "tuned")
    with pytest.raises(RunError, match=r"written by finetune.*load_state_dict.*--init .*model\.pt"):
        ssl_selmix.load(tmp_path / "tuned")


def test_a_run_starts_from_a_folder_of_finetune(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.build(models.Config("cnn-4"), 10, 1)
    x, y = torch.randn(40, 1, 8, 8), torch.arange(40) % 10
    result = ssl_selmix.finetune(
        model, labeled=(x, y), validation=(x, y), steps=2, out=tmp_path / "ft", progress=False
    )
    words = ["--algo", "supervised", *SMALL, "--init", str(tmp_path / "ft" / "model.pt")]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    start = RunFolder(tmp_path / "run").results.start
    assert start is not None and result.model.state_dict().keys() == model.state_dict().keys()
