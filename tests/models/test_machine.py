"""What a run takes from the machine: device, number format, threads, memory, compiled network."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_selmix import contract, models
from ssl_selmix.contract import life, subjects
from ssl_selmix.models import execution
from ssl_selmix.models.execution import Compiled, Execution
from ssl_selmix.runs import train
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.training import engine, machine
from ssl_selmix.training.log import SilentLog

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("has", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")],
)
def test_auto_is_bf16_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert execution.precision_of("auto", CPU) == expected


def test_a_precision_that_is_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert [execution.precision_of(n, CPU) for n in ("fp32", "bf16", "fp16")] == [
        "fp32",
        "bf16",
        "fp16",
    ]


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_old_gpus_only_emulate_bf16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert execution.precision_of("auto", torch.device("cuda")) == expected


def test_processes_of_one_machine_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def zeros(*size: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        asked.append(str(device))
        return torch.ones(())

    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch, "zeros", zeros)
    machine.set_up_device("cuda")
    assert asked == ["cuda:3"]


def test_a_device_that_holds_no_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="device 'meta' cannot be used"):
        machine.set_up_device("meta")


@pytest.mark.parametrize(
    ("device", "half", "fused"),
    [("cuda", False, True), ("cuda", True, False), ("cpu", False, False)],
)
def test_scaled_losses_have_no_fused_steps(device: str, half: bool, fused: bool) -> None:
    assert engine.fuses(torch.device(device), half) is fused


def test_a_resumed_run_fuses_as_its_own_machine_does(tmp_path: Path) -> None:
    data, _ = subjects.make_data()
    algorithm = contract.subject("supervised").make(data, subjects.make_net(data))
    trainer = engine.Trainer(algorithm, data, tmp_path, SilentLog(), "f")
    state = trainer.state()
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True
    trainer.restore(state)
    assert not any(group["fused"] for group in trainer.optimizer.param_groups)


def test_work_is_counted_and_decides_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = models.build(models.Config("cnn-4"), 3, 1)
    # Two operations per multiply-add: 8×8×4×9×1, 4×4×8×9×4, 4×4×8×9×8 and 8×3.
    expected = 2 * (64 * 4 * 9 + 16 * 8 * 9 * 4 + 16 * 8 * 9 * 8 + 24)
    assert machine.flops_per_step(net, (1, 8, 8), 10) == 3 * 10 * expected
    with FlopCounterMode(display=False) as counted, torch.no_grad():  # torch's, with its compiler
        net(torch.zeros(10, 1, 8, 8))
    assert counted.get_total_flops() == 10 * expected
    assert net.training
    monkeypatch.setattr(machine, "machine_threads", lambda: 8)
    unit = machine.FLOPS_PER_THREAD
    assert [machine.threads_for(x * unit) for x in (0.1, 1, 2.5, 100)] == [1, 1, 2, 8]


def test_threads_of_the_machine_are_remembered_when_others_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "machine_threads", functools.cache(torch.get_num_threads))
    before = torch.get_num_threads()
    assert machine.use_threads(before + 1) == torch.get_num_threads() == before + 1
    assert machine.use_threads(0) == torch.get_num_threads() == before


def test_peak_memory_is_that_of_the_process() -> None:
    block = torch.ones(25_000_000)
    assert block.nbytes < machine.peak_memory(CPU)["process"] < 2**40


class Inexpressible(nn.Module):
    """What torch.compile refuses in `reject`, and computes otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)  # type: ignore[no-any-return]


def test_what_does_not_compile_runs_as_it_is_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(module: nn.Module, mode: str) -> Any:
        def run(x: Tensor) -> Tensor:
            raise RuntimeError("no compiler\nwas found")

        return run

    monkeypatch.setattr(torch, "compile", reject)
    said: list[str] = []
    body = Inexpressible()
    run = Compiled(body, body, said.append)
    x = torch.ones(4, 3)
    for _ in range(2):
        assert torch.equal(run(x), body(x))
    assert len(said) == 1
    assert "compile=true has no effect here" in said[0]
    assert "RuntimeError: no compiler was found" in said[0]


def test_a_trial_leaves_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, mode: module)
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = copy.deepcopy(body.state_dict())
    run = Compiled(body, body, print)
    run(torch.randn(4, 1, 5, 5))
    assert all(p.grad is None for p in body.parameters())
    after = body.state_dict()["1.num_batches_tracked"]
    assert int(after) == int(before["1.num_batches_tracked"]) + 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["joint", "lazy"])
def test_a_compiled_network_trains_what_the_network_trains(how: str, tmp_path: Path) -> None:
    """With the backend that only traces: the compiler itself takes a minute."""
    found = {}
    original = torch.compile
    for compiled in (False, True):
        data, _ = subjects.make_data()
        net = subjects.make_net(data).prepared(Execution(views=how, compiled=compiled))
        algorithm = contract.subject("fixmatch").make(data, net, keep="last", threshold=0.4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                torch, "compile", lambda m, mode: original(m, backend="eager", dynamic=False)
            )
            fitted = engine.fit(algorithm, data, tmp_path / str(compiled), SilentLog(), "f")
        assert algorithm.net.execution.runner is None
        found[compiled] = fitted.algorithm.state_dict()
    if how == "joint":
        for name, value in found[False].items():
            torch.testing.assert_close(found[True][name], value, rtol=1e-5, atol=1e-6)
    else:  # sizes are rounded up to a few: other images enter the batch statistics
        assert all(v.isfinite().all() for v in found[True].values())


def test_half_precision_scales_its_losses_and_resumes(tmp_path: Path) -> None:
    def algorithm() -> Any:
        data, _ = subjects.make_data()
        net = subjects.make_net(data).prepared(Execution("fp16"))
        return contract.subject("fixmatch").make(data, net, keep="last"), data

    one, data = algorithm()
    trainer = engine.Trainer(one, data, tmp_path, SilentLog(), "f")
    assert trainer.scaler.is_enabled() and trainer.scaler.get_scale() > 1
    trainer.fit(None)
    assert all(p.isfinite().all() for p in one.parameters())
    trainer.scaler.update(17.0)
    state = trainer.state()
    again, _ = algorithm()
    other = engine.Trainer(again, data, tmp_path, SilentLog(), "f")
    assert other.scaler.state_dict() != state["scaler"]
    other.restore(state)
    assert other.scaler.state_dict() == state["scaler"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fixmatch", "selmix"])
def test_half_precision_resumes_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = subjects.make_net

    def half(data: Any, seed: int = 1) -> models.Classifier:
        return original(data, seed).prepared(Execution("fp16", "lazy"))

    monkeypatch.setattr(subjects, "make_net", half)
    life.check_resume(contract.subject(name), tmp_path)


def test_a_step_that_overflows_is_left_out_and_the_scale_falls(tmp_path: Path) -> None:
    data, _ = subjects.make_data()
    net = subjects.make_net(data).prepared(Execution("fp16"))
    algorithm = contract.subject("supervised").make(data, net, keep="last", ema=0.0)
    trainer = engine.Trainer(algorithm, data, tmp_path, SilentLog(), "f")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = copy.deepcopy(dict(algorithm.named_parameters()))
    trainer.step_once(algorithm.batches(data, 0))
    assert trainer.scaler.get_scale() == 2.0**119
    for key, value in algorithm.named_parameters():
        assert torch.equal(value, before[key])


def test_a_frozen_body_is_tried_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, mode: module)
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5)).requires_grad_(False)
    said: list[str] = []
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    run = Compiled(body, body, said.append)
    run._compile(torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0)))
    assert not said
    assert torch.equal(state, torch.random.get_rng_state())  # the step's numbers are left to it


def test_a_run_records_what_auto_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    request = Request(["fixmatch"], preset="none")
    plan = Plan(request)
    assert plan.identity()["precision"] == "bf16"
    net = train.build(plan, 0, subjects.make_data()[0].task, 1, None).net
    assert net.execution.dtype is torch.bfloat16
    digits = Plan(Request(["fixmatch"]))
    assert digits.identity()["precision"] == "fp32"  # as its preset says
