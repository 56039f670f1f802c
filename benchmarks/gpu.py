"""What a CUDA machine does with this package: one command of at most eight minutes, one file.

    python -m benchmarks.gpu --photos FOLDER --out gpu.json
    python -m benchmarks.gpu_report gpu.json docs/explain/performance.md

FOLDER has train/CLASS and test/CLASS of small photographs, such as CIFAR-10; without it, the job on
photographs is left out. The second command writes the file's tables into the page.

- steps: FixMatch with WRN-28-2, B = 64, mu = 2 and 7, eager and compiled, in turns.
- resume: stages that were ended after half of their steps and resumed, against undisturbed ones.
- agreement: losses of 20 steps of every method in fp32, bf16 and fp16, against those on the CPU.
- memory: the most that the device held with 1,000 classes.
- features: images a second that a pre-trained network's body passes into a folder of features.
- job: FixMatch for 2,000 steps on the photographs and SelMix after it, with what they reach.

A part that fails says so in the file, and the others go on; one for which no time is left is left
out. `--rehearse` takes all parts on the CPU, in sizes that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import device as of_device
from benchmarks.algorithms import settings
from benchmarks.scaling import estimation
from benchmarks.synthetic import Sizes, Steps, make_data, network, source, steps_of
from benchmarks.timing import about, alternate
from ssl_selmix import algorithm, models
from ssl_selmix.common import plugins
from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.console import say
from ssl_selmix.common.stopping import Stop, Stopped
from ssl_selmix.contract.subjects import saved
from ssl_selmix.data import extraction
from ssl_selmix.models import execution
from ssl_selmix.models.execution import Execution, placed
from ssl_selmix.training import engine, machine
from ssl_selmix.training.log import SilentLog

FORMAT = "ssl_selmix gpu 1"
VIEWS = {"weak": 2, "strong": 4}
RESUMED = ("fixmatch", "daso", "abc", "simpro", "selmix")
TARGETS = {"steps_per_second": 100.0, "longest": 0.012, "cpu_share": 0.1}  # on an H200


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    device: str
    network: str = "wrn-28-2"
    batch: int = 64
    mus: tuple[int, ...] = (2, 7)
    modes: tuple[str, ...] = ("eager", "compiled")
    rounds: int = 5
    steps: int = 40  # of an arm in a round
    methods: tuple[str, ...] = ()  # that are compared with the CPU; none named: all that train
    compared: int = 20  # steps
    small: str = "cnn-16"  # network of the comparison with the CPU
    classes: int = 1000
    body: str = "timm:tf_efficientnet_lite0"
    pixels: int = 96
    images: int = 4000
    job_steps: int = 2000
    job_words: tuple[str, ...] = (
        *("data.labeled.largest=1500", "data.labeled.rho=100", "data.unlabeled.largest=3000"),
        *("data.unlabeled.rho=100", "data.validation=500", "selmix.steps=400"),
    )

    @property
    def on_cpu(self) -> bool:
        """Whether this is a rehearsal."""
        return self.device == "cpu"

    @property
    def precision(self) -> str:
        """That of a run that was not told any."""
        return "fp32" if self.on_cpu else execution.precision_of("auto", torch.device(self.device))

    def wait(self) -> None:
        """Return when the device has finished."""
        if not self.on_cpu:
            torch.cuda.synchronize()


REHEARSAL = Scale(
    device="cpu",
    network="cnn-4",
    batch=2,
    modes=("eager",),
    rounds=1,
    steps=1,
    methods=("fixmatch", "selmix"),
    compared=2,
    small="cnn-4",
    classes=3,
    body="cnn-4",
    pixels=16,
    images=16,
    job_steps=2,
    job_words=(
        *("data.labeled.largest=6", "data.labeled.rho=2", "data.unlabeled.largest=4"),
        *("data.unlabeled.rho=2", "data.validation=4", "fixmatch.batch=4", "selmix.steps=2"),
        *("selmix.batch=4", "data.workers=0", "data.cache=none"),
    ),
)


def steps(scale: Scale, left: float, photos: Path | None) -> dict[str, Any]:
    """Seconds of a step, and what the device does in it."""
    data = make_data(Sizes(size=8) if scale.on_cpu else Sizes(), scale.device)
    arms: dict[tuple[int, str], Steps] = {}
    for mu in scale.mus:
        for mode in scale.modes:
            how = Execution(scale.precision, compiled=mode == "compiled")
            options = {"batch": scale.batch, "mu": mu}
            net = network(scale.network, data)
            arms[mu, mode] = steps_of("fixmatch", data, net, options, how)
    named = {f"{mu} {mode}": arm for (mu, mode), arm in arms.items()}
    times = alternate(named, scale.rounds, warm=2, calls=scale.steps, wait=scale.wait)
    rows = []
    for (mu, mode), arm in arms.items():
        work = of_device.work_of(arms[mu, "eager"], scale.device)
        rows.append(
            {
                **{"mu": mu, "mode": mode, "seconds": list(times.seconds[f"{mu} {mode}"])},
                "cpu": of_device.cpu_seconds(arm, scale.steps, scale.wait),
                "busy": None if scale.on_cpu else of_device.busy_seconds(arm, 10),
                **{"flops": work.flops, "bytes": work.bytes},
            }
        )
    found = {"network": scale.network, "batch": scale.batch, "precision": scale.precision}
    return found | {"rows": rows, "limits": limits(scale)}


def limits(scale: Scale) -> dict[str, Any] | None:
    """What the device can do at most, if it says so."""
    if scale.on_cpu:
        return None
    try:
        found = of_device.limits_of(torch.cuda.get_device_properties(0), scale.precision)
    except AttributeError:  # clock rates are not in every version of torch
        return None
    return {"flops": found.flops, "bytes": found.bytes}


class _AfterHalf(Stop):
    """Asks to end when it is asked so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    @property
    def asked(self) -> int:
        """143 from then on."""
        self._left -= 1
        return 143 if self._left <= 0 else 0


def trained(scale: Scale, name: str, folder: Path, half: int = 0) -> dict[str, str]:
    """Digests of a short stage's checkpoints; ended after `half` steps and resumed, if not 0."""
    data = make_data(Sizes(size=8 if scale.on_cpu else 32), scale.device)
    kind = algorithm.load(name)[1]
    options: dict[str, Any] = {"steps": 2 * scale.steps, "lr": 1e-3, "keep": "last"}
    options |= {**settings(name, scale.batch, 2), "evaluate_every": 2 * scale.steps}
    for stop in [_AfterHalf(half), Stop()] if half else [Stop()]:
        net = network(scale.network, data).prepared(Execution(scale.precision))
        made = placed(kind(net, data.task, kind.Config(**options)), data.device)
        pauses = engine.Pauses(stop)
        with suppress(Stopped):
            engine.fit(made, data, folder, SilentLog(), "f", resume=True, pauses=pauses)
    return saved(folder)


def resume(scale: Scale, left: float, photos: Path | None) -> list[dict[str, Any]]:
    """Whether stages that were ended and resumed have the bits of undisturbed ones."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in scale.methods or RESUMED:
            whole, again, cut = (
                trained(scale, name, Path(place) / name / how, half)
                for how, half in (("whole", 0), ("again", 0), ("cut", scale.steps))
            )
            rows.append({"method": name, "repeated": whole == again, "resumed": whole == cut})
    return rows


def losses_of(scale: Scale, name: str, device: str, precision: str) -> list[float]:
    """The losses of the first steps of a method, on networks and batches that are the same."""
    data = make_data(Sizes(size=8), device)
    net = network(scale.small, data)
    made = steps_of(name, data, net, settings(name, 8, 2), Execution(precision))
    found: list[torch.Tensor] = []

    def note(module: Any, given: Any, out: Any) -> None:
        found.append(torch.stack([v.detach().float() for v in out[0].values()]).sum())

    made.algorithm.register_forward_hook(note)
    for _ in range(scale.compared):
        made()
    return [float(loss) for loss in found]


def agreement(scale: Scale, left: float, photos: Path | None) -> list[dict[str, Any]]:
    """How far the losses of a method are from those on the CPU in float32, relative to these."""
    end, rows = time.monotonic() + left, []
    for name in scale.methods or list(plugins.available("algorithm")):
        if not algorithm.load(name)[1].trains or time.monotonic() > end:
            continue
        row: dict[str, Any] = {"method": name}
        try:
            expected = losses_of(scale, name, "cpu", "fp32")
            size = sum(map(abs, expected)) / len(expected)
            for precision in ("fp32", "bf16", "fp16"):
                found = losses_of(scale, name, scale.device, precision)
                apart = [abs(a - b) / size for a, b in zip(found, expected, strict=True)]
                row[precision] = {"first": apart[0], "largest": max(apart)}
        except (RuntimeError, ValueError) as error:
            row["error"] = _short(error)
        rows.append(row)
    return rows


def memory(scale: Scale, left: float, photos: Path | None) -> list[dict[str, Any]]:
    """The most bytes that the device held, with many classes."""
    k = scale.classes
    sizes = Sizes(num_classes=k, labeled=4, unlabeled=4, rho=1, validation=2, test=1)

    def step(name: str, **options: int) -> Callable[[], object]:
        data = make_data(sizes, scale.device)
        net = network(scale.network, data)
        return steps_of(name, data, net, options, Execution(scale.precision))

    makers: dict[str, Callable[[], Callable[[], object]]] = {
        f"FixMatch step, B = {scale.batch}, mu = 7": lambda: step(
            "fixmatch", batch=scale.batch, mu=7
        ),
        f"SelMix step, B = {scale.batch}": lambda: step("selmix", batch=scale.batch),
        "SelMix re-estimation, pool of 50,000": lambda: estimation(
            k, 50 if scale.on_cpu else 50_000, scale.device
        ),
    }
    rows = []
    for what, make in makers.items():
        if not scale.on_cpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        work = make()
        work()
        scale.wait()
        held = None if scale.on_cpu else torch.cuda.max_memory_allocated()
        rows.append({"what": what, "classes": k, "bytes": held})
    return rows


def features(scale: Scale, left: float, photos: Path | None) -> dict[str, Any]:
    """Images a second into a folder of features, several views of each."""
    config = models.Config(scale.body, tune="head", size=scale.pixels)
    net = placed(models.build(config, 10, 3), torch.device(scale.device))
    net.prepared(Execution(scale.precision)).eval().requires_grad_(False)
    images = source(np.arange(scale.images) % 10, 10, 32)
    parts = extraction.parts_of(images, torch.device(scale.device), VIEWS)
    with tempfile.TemporaryDirectory() as place:
        for run in ("warm", "timed"):
            made = extraction.Features(Path(place) / run, parts, {"dtype": "float16"})
            scale.wait()
            since = time.perf_counter()
            made.make(net.embed, at_once=extraction.AT_ONCE[0 if scale.on_cpu else 1])
            scale.wait()
            seconds = time.perf_counter() - since
    passes = scale.images * (1 + sum(VIEWS.values()))
    found = {"network": scale.body, "pixels": scale.pixels, "precision": scale.precision}
    return found | {"images": scale.images, "passes": passes, "seconds": seconds}


def command(words: Sequence[str], seconds: float) -> None:
    """Run the command line in a process of its own.

    Raises:
        RuntimeError: it did not end well, or not in time.
    """
    whole = [sys.executable, "-m", "ssl_selmix", *words]
    try:
        ended = subprocess.run(whole, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the job took more than the {seconds:.0f} s that were left") from error
    if ended.returncode:
        raise RuntimeError((ended.stdout + ended.stderr)[-500:])


def job(scale: Scale, left: float, photos: Path | None) -> dict[str, Any] | None:
    """Both stages on photographs, and what they reach on test images."""
    if photos is None:
        return None
    with tempfile.TemporaryDirectory() as place:
        words = ["train", "--algo", "fixmatch", "--then", "selmix", "--dataset", "image_folder"]
        words += [f"data.root={photos}", f"model.name={scale.network}", f"device={scale.device}"]
        words += [f"fixmatch.steps={scale.job_steps}", f"fixmatch.evaluate_every={scale.job_steps}"]
        words += ["pictures=false", *scale.job_words]
        since = time.perf_counter()
        command([*words, "--out", f"{place}/run"], left)
        seconds = time.perf_counter() - since
        stages = json.loads((Path(place) / "run" / "results.json").read_text())["stages"]
    kept = ("mean_recall", "min_recall", "h_mean")
    rows = [
        {
            **{key: stage[key] for key in ("algorithm", "steps", "seconds")},
            **{part: {k: stage[part][k] for k in kept} for part in ("validation", "test")},
        }
        for stage in stages
    ]
    shown = [w for w in words if not w.startswith("data.root")]
    return {"seconds": seconds, "command": " ".join(shown), "stages": rows}


PARTS: dict[str, Callable[[Scale, float, Path | None], Any]] = {
    "steps": steps,
    "resume": resume,
    "features": features,
    "memory": memory,
    "job": job,
    "agreement": agreement,
}


def measured(scale: Scale, minutes: float, photos: Path | None) -> dict[str, Any]:
    """All parts, as long as there is time."""
    start = time.monotonic()
    name = "CPU, rehearsed" if scale.on_cpu else torch.cuda.get_device_name()
    found: dict[str, Any] = {"format": FORMAT, "device": name, "rehearsed": scale.on_cpu}
    found |= {"about": about(rounds=scale.rounds), "cuda": torch.version.cuda, "took": {}}
    for part, measure in PARTS.items():
        since = time.monotonic()
        left = 60 * minutes - (since - start)
        if left < 10:
            found[part] = {"error": "no time was left"}
            continue
        try:
            found[part] = measure(scale, left, photos)
        except Exception as error:  # of a part: the others are worth having
            traceback.print_exc()
            found[part] = {"error": _short(error)}
        found["took"][part] = round(time.monotonic() - since, 1)
        say(f"{part}: {found['took'][part]} s")
    return found


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, measure, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="folder of train/CLASS and test/CLASS")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=7.5, help="after which nothing begins")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in tiny sizes")
    args = parser.parse_args(argv)
    if not (args.rehearse or torch.cuda.is_available()):
        print("no CUDA GPU here: nothing is measured; --rehearse takes all parts on the CPU")
        return 1
    machine.set_up_device("cpu" if args.rehearse else "cuda")
    scale = REHEARSAL if args.rehearse else Scale("cuda")
    found = measured(scale, args.minutes, args.photos)
    write_atomically(args.out, (json.dumps(found, indent=1) + "\n").encode())
    failed = [p for p in PARTS if isinstance(found[p], dict) and "error" in found[p]]
    print(f"{args.out}: {'all parts' if not failed else 'without ' + ', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
