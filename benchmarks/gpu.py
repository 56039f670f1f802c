"""FixMatch steps on a GPU: steps per second, and how far that is from what the GPU could do.

    python -m benchmarks.gpu

WRN-28-2, B = 64, mu = 2 and 7, eager and compiled, in turns. Without a CUDA GPU it says so and
measures nothing.

`GPU busy` is the time in which a kernel ran (torch.profiler), as a share of the time of a step
without the profiler. `CPU` is the processor time of all threads for a step that starts with the GPU
idle and is not waited for. FLOP of a step are those of torch's counter (convolutions and matrix
products). Bytes are those that all operations of an eager step read and write, each on its own: a
compiled step moves fewer, so its share of the bandwidth is what an eager one would have to move.
Limits are worked out from the device's properties: multiprocessors × highest clock × operations
per clock, and the memory's clock × width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.synthetic import Sizes, Steps, make_data, network, steps_of
from benchmarks.timing import (
    Times,
    about,
    alternate,
    as_time,
    digits,
    parser_of,
    positive,
    spread,
    table,
)
from ssl_selmix.models import execution
from ssl_selmix.models.execution import Execution
from ssl_selmix.training import machine

# Dense floating-point operations per clock and multiprocessor, by compute capability: those of the
# tensor cores in half precision, and those of float32 without them (NVIDIA's architecture papers).
HALF = {(7, 0): 1024, (7, 5): 1024, (8, 0): 2048, (8, 6): 512, (8, 9): 512, (9, 0): 4096}
SINGLE = {(7, 0): 128, (7, 5): 128, (8, 0): 128, (8, 6): 256, (8, 9): 256, (9, 0): 256}
STEPS_PER_SECOND, LONGEST, CPU_SHARE = 100.0, 0.012, 0.1  # targets on an H200


class Traffic(TorchDispatchMode):
    """Adds up the bytes of all tensors of one device type that operations read and write."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type, self.bytes = device_type, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation itself; views and empty tensors move nothing."""
        out = func(*args, **(kwargs or {}))
        aliases = [r.alias_info for r in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        if not view and "empty" not in func.__name__:
            for leaf in tree_leaves((args, kwargs, out)):
                if isinstance(leaf, Tensor) and leaf.device.type == self.device_type:
                    self.bytes += leaf.numel() * leaf.element_size()
        return out


@dataclass(frozen=True)
class Work:
    """What one step computes and moves."""

    flops: float
    bytes: float


def work_of(step: Callable[[], object], device_type: str) -> Work:
    """FLOP and bytes of a step, counted while it runs eagerly."""
    with FlopCounterMode(display=False) as flops:
        step()
    with Traffic(device_type) as traffic:
        step()
    return Work(float(flops.get_total_flops()), float(traffic.bytes))


@dataclass(frozen=True)
class Limits:
    """What a device can do at most in a second; None if it is not known."""

    flops: float | None
    bytes: float


def limits_of(properties: Any, precision: str) -> Limits:
    """FLOP and bytes per second, from torch.cuda.get_device_properties."""
    per_clock = (SINGLE if precision == "fp32" else HALF).get((properties.major, properties.minor))
    clocks = properties.multi_processor_count * properties.clock_rate * 1e3
    width = properties.memory_bus_width / 8
    # Two transfers per clock; clock rates are in kHz.
    return Limits(per_clock and per_clock * clocks, 2e3 * properties.memory_clock_rate * width)


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals.

    >>> covered([(0, 2), (5, 6), (1, 3)])
    4
    """
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def busy_seconds(step: Callable[[], object], steps: int) -> float:
    """Seconds per step in which a kernel ran."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in found.events() or ()
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]
    return covered(kernels) / 1e6 / steps


def cpu_seconds(step: Callable[[], object], steps: int, wait: Callable[[], None]) -> float:
    """Median processor seconds that a step takes to be issued, all threads together."""
    found = []
    for _ in range(steps):
        wait()
        start = time.process_time()
        step()
        found.append(time.process_time() - start)
    wait()
    return statistics.median(found)


def row(name: str, times: Times, cpu: float, busy: float, work: Work, limits: Limits) -> list[str]:
    """Cells of one arm."""
    seconds = times.median(name)
    flops, moved = work.flops / seconds, work.bytes / seconds
    share = f" ({flops / limits.flops:.0%})" if limits.flops else ""
    least = [work.bytes / limits.bytes] + ([work.flops / limits.flops] if limits.flops else [])
    return [
        name,
        digits(1 / seconds),
        as_time(seconds),
        spread(times.seconds[name], as_time),
        f"{busy / seconds:.0%}",
        f"{as_time(cpu)} ({cpu / seconds:.0%})",
        f"{flops / 1e12:.1f}{share}",
        f"{moved / 1e9:.0f} ({moved / limits.bytes:.0%})",
        as_time(max(least)),
    ]


HEAD = ["step", "steps/s", "median", "range", "GPU busy", "CPU", "TFLOP/s", "GB/s", "limit"]


def show_targets(times: Times, cpu: dict[str, float], mus: Sequence[int]) -> None:
    """Print measured against target for the compiled steps."""
    rows = []
    for mu in mus:
        arm = f"mu = {mu}, compiled"
        seconds = times.median(arm)
        if mu == 2:
            rows.append([f"steps/s, {arm}", digits(1 / seconds), f"at least {STEPS_PER_SECOND:g}"])
        if mu == 7:
            rows.append([f"a step, {arm}", as_time(seconds), f"at most {as_time(LONGEST)}"])
        share = f"{cpu[arm] / seconds:.0%}"
        rows.append([f"CPU time of a step, {arm}", share, f"under {CPU_SHARE:.0%} of the step"])
    print(table(["on an H200", "measured", "target"], rows))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments; with a GPU, time and print the tables."""
    parser = parser_of(__doc__, rounds=7)
    parser.add_argument("--network", default="wrn-28-2")
    parser.add_argument("--batch", type=positive, default=64, help="B, labeled images a step")
    parser.add_argument("--mu", type=positive, nargs="+", default=[2, 7])
    parser.add_argument("--steps", type=positive, default=50, help="of an arm in a round")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing is measured")
        return
    device = machine.set_up_device("cuda")
    precision = execution.precision_of("auto", device)
    properties = torch.cuda.get_device_properties(device)
    data = make_data(Sizes(), "cuda")
    arms: dict[str, Steps] = {}
    for mu in args.mu:
        for mode in ("eager", "compiled"):
            how = Execution(precision, compiled=mode == "compiled")
            settings = {"batch": args.batch, "mu": mu}
            net = network(args.network, data)
            arms[f"mu = {mu}, {mode}"] = steps_of("fixmatch", data, net, settings, how)
    wait = torch.cuda.synchronize
    times = alternate(arms, args.rounds, warm=2, calls=args.steps, wait=wait)
    cpu = {name: cpu_seconds(step, args.steps, wait) for name, step in arms.items()}
    work = {mu: work_of(arms[f"mu = {mu}, eager"], "cuda") for mu in args.mu}
    limits = limits_of(properties, precision)
    peak = f"{limits.flops / 1e12:.0f} TFLOP/s" if limits.flops else "unknown FLOP/s"
    print(f"{properties.name}: at most {peak} in {precision}, {limits.bytes / 1e9:.0f} GB/s")
    print(f"{args.network}, {precision}, B = {args.batch}; rounds of {args.steps} steps")
    print(about(rounds=args.rounds) + "\n")
    rows = [
        row(
            f"mu = {mu}, {mode}",
            times,
            cpu[f"mu = {mu}, {mode}"],
            busy_seconds(arms[f"mu = {mu}, {mode}"], min(10, args.steps)),
            work[mu],
            limits,
        )
        for mu in args.mu
        for mode in ("eager", "compiled")
    ]
    print(table(HEAD, rows))
    print()
    show_targets(times, cpu, args.mu)


if __name__ == "__main__":
    main()
