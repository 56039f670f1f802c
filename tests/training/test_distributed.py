"""Several processes train as one does: gloo, two processes, on the CPU."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from ssl_selmix import cli, contract, losses, models
from ssl_selmix.common import plugins
from ssl_selmix.common.processes import World, world
from ssl_selmix.common.stopping import Stop, Stopped
from ssl_selmix.contract import subjects
from ssl_selmix.models import batch_norm
from ssl_selmix.models.batch_norm import SharedBatchNorm2d
from ssl_selmix.models.execution import Execution
from ssl_selmix.training import checkpoint, engine
from ssl_selmix.training.log import SilentLog
from tests.data import test_files
from tests.helpers.images import photo_tree
from tests.helpers.shared import once

NAMES = list(plugins.available("algorithm"))
STEPS = 3
# Split and lazy steps are one function for all methods, with one strong view or several.
CASES = [(name, "joint") for name in NAMES]
# mixup needs all images of a batch everywhere, and simpro two views of the labeled ones.
FROM_FILES = [("fixmatch", "joint"), ("fixmatch", "lazy"), ("selmix", "joint"), ("mixup", "joint")]
FROM_FILES += [("simpro", "joint"), ("simpro", "lazy")]
CASES += [(name, how) for name in ("fixmatch", "abc") for how in ("split", "lazy")]
CASES += [("fixmatch", "labeled"), ("abc", "teacher"), ("cpe", "group")]
# How the views are looked at where that is no word of `forwards`, and the method's settings then.
OTHER_WAYS: dict[str, tuple[Execution, dict[str, Any]]] = {
    "labeled": (Execution(views="lazy", with_labeled=True), {}),
    "teacher": (Execution(views="lazy"), {"pseudo_labels": "teacher"}),
    "group": (Execution(), {"statistics": "group", "threshold": 0.38}),
}
ROOT = Path(__file__).parents[2]
# Parts that three steps would leave idle: see test_contract_algorithms.py.
AWAKE: dict[str, dict[str, Any]] = {
    "daso": {"warmup": 0.0, "count_every": 1},
    "remixmatch_daso": {"warmup": 0.0, "count_every": 1},
    "darp": {"refine_warmup": 0.0, "refine_every": 1, "prior": "uniform"},
    "remixmatch_darp": {"refine_warmup": 0.0, "refine_every": 1, "prior": "uniform"},
    "crest": {"generations": 2},
    "crest_plus": {"generations": 2},
}


def trained(name: str, folder: Path, how: str = "joint") -> dict[str, Any]:
    """State of the student and of the teacher after a few steps; figures on validation."""
    data, diagnostics = subjects.make_data()
    execution, settings = OTHER_WAYS.get(how, (Execution(views=how), {}))
    subject = contract.subject(name, **AWAKE.get(name, {}), **settings)
    net = subjects.make_net(data).prepared(dataclasses.replace(execution, world=world()))
    if world():
        batch_norm.share_batch_norms(net, torch.device("cpu"))
    options = {"steps": STEPS, "keep": "last", "lr": 0.01}
    algorithm = subject.make(data, net, **options)
    fitted = engine.fit(
        algorithm,
        data,
        folder / f"{name}-{how}",
        SilentLog(),
        "test",
        diagnostics=diagnostics,
        origin=subjects.origin_for(algorithm, data),
    )
    state = {"student": algorithm.state_dict(), "teacher": fitted.algorithm.state_dict()}
    logits = engine.evaluate(fitted.algorithm, data, pool=True).pool_logits
    assert logits is not None
    return tensors(state) | {"pool_logits": logits.clone()}


def count_some() -> None:
    """Let fixed images count in lazy steps, more of one process's than of the other's.

    An even number: several processes fill lazy steps up, and fillers enter the batch statistics.
    """
    original = losses.pseudo_label

    def some(p: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        classes, mask = original(p, threshold)
        kept = torch.tensor([1, 0, 1, 1, 1, 0, 0, 0], dtype=mask.dtype)
        return classes, mask * kept[: len(mask)]

    losses.pseudo_label = some


@pytest.fixture(autouse=True)
def _count_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "pseudo_label", losses.pseudo_label)  # put back after the test
    count_some()


def from_files(name: str, folder: Path, how: str) -> dict[str, Any]:
    """What a method learns from a folder of small JPEG files."""
    data = test_files.assembled(folder / "photographs")[0]
    torch.manual_seed(1)
    net = models.build(models.Config("cnn-4"), 3, 3)
    net.prepared(Execution(views=how, world=world()))
    if world():
        batch_norm.share_batch_norms(net, torch.device("cpu"))
    algorithm = contract.subject(name).make(data, net, steps=STEPS, keep="last", lr=0.01)
    place = folder / f"{name}-{how}-files"
    engine.fit(algorithm, data, place, SilentLog(), "test")
    return tensors(algorithm.state_dict())


def tensors(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors in nested dictionaries, by their path."""
    found: dict[str, Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= tensors(value, f"{prefix}{key}/")
        elif isinstance(value, Tensor):
            found[f"{prefix}{key}"] = value.detach().clone()
    return found


class _AskedOnce(Stop):
    """Asks one of the processes to end, when it is asked for the third time."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank, self._times = rank, 0

    @property
    def asked(self) -> int:
        self._times += 1
        return 143 if (self._rank, self._times) == (1, 3) else 0


def asked_to_end(folder: Path, rank: int) -> None:
    """Train undisturbed, and with an end that one process is asked for; save both states."""
    data, _ = subjects.make_data()
    for name in ("whole", "ended"):
        place = folder / name

        def fit(resume: bool, pauses: engine.Pauses, place: Path = place) -> engine.Fitted:
            net = subjects.make_net(data).prepared(Execution(world=world()))
            batch_norm.share_batch_norms(net, torch.device("cpu"))
            algorithm = contract.subject("fixmatch").make(data, net, steps=6, keep="last")
            return engine.fit(
                algorithm, data, place, SilentLog(), "test", resume=resume, pauses=pauses
            )

        if name == "ended":
            with pytest.raises(Stopped, match="ended by SIGTERM after step 3 of ended"):
                fit(False, engine.Pauses(_AskedOnce(rank)))
            assert checkpoint.load(place / checkpoint.BETWEEN)["step"] == 3
        found = fit(name == "ended", engine.Pauses())
        torch.save(tensors(found.algorithm.state_dict()), f"{folder}/{name}-{rank}.pt")


def _process(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    count_some()
    where = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", where, rank=rank, world_size=2)
    for name, how in CASES:
        torch.save(trained(name, Path(folder), how), f"{folder}/{name}-{how}-{rank}.pt")
    torch.save(_batch_norm_of_two(rank), f"{folder}/norm-{rank}.pt")
    asked_to_end(Path(folder), rank)
    for name, how in FROM_FILES:
        found = from_files(name, Path(folder), how)
        torch.save(found, f"{folder}/{name}-{how}-files-{rank}.pt")
    torch.distributed.destroy_process_group()


def _batch_norm_of_two(rank: int) -> dict[str, Tensor]:
    x, norm, weight = _norm_inputs()
    share = x[rank::2].clone().requires_grad_()
    shared = nn.Sequential(norm)
    batch_norm.share_batch_norms(shared, torch.device("cpu"))
    assert isinstance(shared[0], SharedBatchNorm2d)
    out = shared(share)
    (out * weight[rank::2]).sum().backward()
    assert share.grad is not None
    return {"out": out.detach(), "grad": share.grad, **shared[0].state_dict()}


def _norm_inputs() -> tuple[Tensor, nn.BatchNorm2d, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 6, 3, 4, 4, generator=generator)
    return 2 * x + 1, nn.BatchNorm2d(3), weight


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes found."""

    def make(folder: Path) -> None:
        photo_tree(folder / "photographs", {"": test_files.NUM}, "012")
        mp.spawn(_process, (str(folder),), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]

    return once(tmp_path_factory, "two", make)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), CASES)
def test_two_processes_train_what_one_trains(
    two: Path, tmp_path: Path, name: str, how: str
) -> None:
    one = trained(name, tmp_path, how)
    start = contract.subject(name).make(subjects.make_data()[0])
    for rank in range(2):
        found = torch.load(two / f"{name}-{how}-{rank}.pt", weights_only=True)
        assert found.keys() == one.keys()
        for key, value in one.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=key)
    before = tensors({"student": start.state_dict()})
    assert any(not torch.equal(one[key], before[key]) for key in before)  # it learned at all


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), FROM_FILES)
def test_processes_that_read_files_by_shares_learn_what_one_does(
    two: Path, tmp_path: Path, name: str, how: str
) -> None:
    (tmp_path / "photographs").symlink_to(two / "photographs")
    one = from_files(name, tmp_path, how)
    for rank in range(2):
        found = torch.load(two / f"{name}-{how}-files-{rank}.pt", weights_only=True)
        for key, value in one.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.slow
def test_all_end_after_the_step_at_which_one_was_asked(two: Path) -> None:
    whole, *others = (
        torch.load(two / f"{name}-{rank}.pt", weights_only=True)
        for name in ("whole", "ended")
        for rank in range(2)
    )
    for other in others:
        assert other.keys() == whole.keys()
        assert all(torch.equal(other[key], value) for key, value in whole.items())


@pytest.mark.slow
def test_a_share_of_the_files_is_decoded(two: Path) -> None:
    data = test_files.assembled(two / "photographs")[0]
    whole = next(data.batches(("weak", "strong"), 4, 2, 0))
    share = next(data.shared(World(1, 2)).batches(("weak", "strong"), 4, 2, 0))
    black = test_files.pool_of(data).normalise(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    for one, other in ((whole.x, share.x), *((whole.u[v], share.u[v]) for v in (0, 1))):
        assert torch.equal(one[1::2], other[1::2])
        assert torch.equal(other[::2], black.expand(len(one) // 2, -1, -1, -1))


@pytest.mark.slow
def test_batch_norm_over_processes_is_that_of_the_whole_batch(two: Path) -> None:
    x, norm, weight = _norm_inputs()
    x.requires_grad_()
    out = norm(x)
    (out * weight).sum().backward()
    assert x.grad is not None
    for rank in range(2):
        found = torch.load(two / f"norm-{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["out"], out[rank::2].detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["grad"], x.grad[rank::2], rtol=1e-5, atol=1e-5)
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_shared_layers_keep_their_tensors_names_and_modes() -> None:
    norm = nn.BatchNorm2d(2, eps=1e-3, momentum=None, affine=False)
    twice = nn.BatchNorm2d(3).eval()
    net = nn.Sequential(twice, nn.Sequential(nn.ReLU(), norm), twice)
    before = net.state_dict(keep_vars=True)
    for _ in range(2):  # what is shared already is left alone
        batch_norm.share_batch_norms(net, torch.device("cpu"))
        found = net.state_dict(keep_vars=True)
        assert list(found) == list(before)
        assert all(found[key] is value for key, value in before.items())
    first, second = net[0], net.get_submodule("1.1")
    assert isinstance(first, SharedBatchNorm2d) and isinstance(second, SharedBatchNorm2d)
    assert first is net[2]
    assert not first.training and second.training
    assert (second.eps, second.momentum, second.affine) == (1e-3, None, False)


def test_layers_that_do_more_than_normalise_are_not_shared() -> None:
    class BatchNormAct2d(nn.BatchNorm2d):
        """As timm's, with an activation of its own."""

    net = nn.Sequential(nn.Conv2d(1, 2, 3), BatchNormAct2d(2))
    for device in ("cpu", "cuda"):
        with pytest.raises(ValueError, match="cannot share the BatchNormAct2d"):
            batch_norm.share_batch_norms(net, torch.device(device))


def test_a_class_that_rewrites_the_step_reads_all_files_unless_it_says_otherwise() -> None:
    fixmatch = contract.subject("fixmatch").make(subjects.make_data()[0])
    assert engine.reads_shares(fixmatch)
    fixmatch.net.prepared(Execution(views="lazy"))
    assert not engine.reads_shares(fixmatch)  # which images count is known too late

    class Mine(type(fixmatch)):  # type: ignore[misc]
        def forward(self, batch: Any, ctx: Any) -> Any:
            return super().forward(batch, ctx)

    mine = subjects.Subject("mine", Mine).make(subjects.make_data()[0])
    assert not engine.reads_shares(mine)

    with pytest.warns(DeprecationWarning, match="is @keeps_rows on forward now"):

        class OfVersion01(type(fixmatch)):  # type: ignore[misc]
            mixes_images = False

            def forward(self, batch: Any, ctx: Any) -> Any:
                return super().forward(batch, ctx)

    class Derived(OfVersion01):
        def forward(self, batch: Any, ctx: Any) -> Any:
            return super().forward(batch, ctx)

    class Inherits(OfVersion01):
        pass

    kept = [
        engine.reads_shares(subjects.Subject("mine", kind).make(subjects.make_data()[0]))
        for kind in (OfVersion01, Derived, Inherits)
    ]
    assert kept == [True, False, True]


@pytest.mark.parametrize(("num", "size"), [(6, 2), (7, 2), (1, 3), (8, 3)])
def test_shares_cover_the_batch_and_are_equally_large(num: int, size: int) -> None:
    rows = [World(rank, size).rows(num) for rank in range(size)]
    assert {len(r) for r in rows} == {-(-num // size)}
    assert set(torch.cat(rows).tolist()) == set(range(num))


def run(folder: Path, *words: str, script: str = "train.py") -> subprocess.CompletedProcess[str]:
    """The command line under torchrun, in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--standalone", script, "--out", str(folder), *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | OWN
    )


OWN = {"OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": ""}
SHORT = ["fixmatch.steps=4", "fixmatch.batch=8", "fixmatch.evaluate_every=2", "selmix.steps=4"]


@pytest.mark.slow
def test_the_command_under_torchrun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--algo", "fixmatch", "--then", "selmix", *SHORT]
    done = run(tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results: ") == 1  # one process speaks
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(written["stages"]) == 2
    assert written["protocol"]["processes"] == 2
    assert written["protocol"]["sync_batch_norm"] is False

    # What is finished stays; another number of processes would end with other bits.
    before = (tmp_path / "run" / "results.json").read_bytes()
    assert run(tmp_path / "run", "--resume", *words).returncode == 0
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    assert cli.main([*words, "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "processes: 2 -> None" in capsys.readouterr().err


@pytest.mark.slow
def test_mistakes_are_told_once(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "--algo", "fixmatch", *SHORT[:1], "fixmatch.batch=7")
    assert done.returncode != 0
    assert done.stderr.count("error: batch=7 cannot be shared by 2 processes") == 1


DISAGREES = """
import os, sys
from ssl_selmix import cli
words = ["--algo", "fixmatch", *sys.argv[1:], f"fixmatch.threshold=0.{7 + int(os.environ['RANK'])}"]
raise SystemExit(cli.main(["train", *words]))
"""


@pytest.mark.slow
def test_processes_that_were_told_different_things_are_refused(tmp_path: Path) -> None:
    (tmp_path / "disagrees.py").write_text(DISAGREES)
    done = run(tmp_path / "run", *SHORT[:3], script=str(tmp_path / "disagrees.py"))
    assert done.returncode != 0
    assert done.stderr.count("error: the processes see different images, splits, settings") == 1
    assert not list(tmp_path.rglob("last.pt"))
