"""Does `kill` leave a trace? Six jobs, killed at random moments and resumed, bit for bit.

    OMP_NUM_THREADS=1 python -m benchmarks.kill_resume --kills 100 --log kill-resume.log.gz

Each job runs once undisturbed, and once more with signals at random moments spread over all of its
validations, each followed by `--resume`: SIGKILL, or one that the job answers by saving after the
step (`--signal TERM`). All checkpoints are compared. The jobs are first and second stages on the
digits, on JPEG files that are read while they train, and on features; `--jobs main` is the main job
of the README alone. Settings (`key=value`) are given to all of them.

Exit code 1 if any bit differs, or if a job answers with another code than its own for that signal.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import features
from benchmarks.photographs import jpegs
from benchmarks.timing import about, table
from ssl_selmix.training import checkpoint

ROOT = Path(__file__).resolve().parents[1]
SPLIT = [*("data.labeled.rho=4", "data.unlabeled.rho=4", "pictures=false", "threads=1")]
SMALL = ["data.labeled.largest=12", "data.unlabeled.largest=16", "data.validation=4", *SPLIT]


@dataclass(frozen=True)
class Job:
    """Stages, what they train on (digits, files, features), and their settings."""

    stages: tuple[str, ...]
    on: str
    settings: tuple[str, ...] = ()

    def words(self, place: Path) -> list[str]:
        """Of the command line; `place` has the files and the features."""
        named = ["--algo", self.stages[0]]
        named += [word for name in self.stages[1:] for word in ("--then", name)]
        sources = {
            "digits": ["--dataset", "digits", "pictures=false", "threads=1"],
            "files": [
                *("--dataset", "image_folder", f"data.root={place / 'files'}", "data.size=72"),
                *("data.cache=none", "data.workers=1", "model.name=cnn-4", *SMALL),
            ],
            "features": ["--dataset", "features", f"data.root={place / 'features'}", *SMALL],
        }
        return [*named, *sources[self.on], *self.settings]


def _short(*names: str, steps: int, every: int) -> tuple[str, ...]:
    return tuple(
        word
        for name in names
        for word in (f"{name}.steps={steps}", f"{name}.evaluate_every={every}")
    )


JOBS: Mapping[str, Job] = {
    "main": Job(("fixmatch", "selmix"), "digits"),
    "fixmatch": Job(
        ("fixmatch", "selmix"),
        "digits",
        (*_short("fixmatch", steps=200, every=10), *_short("selmix", steps=60, every=5)),
    ),
    "daso": Job(
        ("daso", "crt"),
        "digits",
        (*_short("daso", steps=160, every=10), *_short("crt", steps=60, every=5)),
    ),
    "abc": Job(
        ("abc", "selmix", "wise_ft"),
        "files",
        (
            *_short("abc", steps=60, every=4),
            *_short("selmix", steps=24, every=2),
            *("abc.batch=4", "selmix.batch=4", "abc.pseudo_labels=teacher", "views.lazy=true"),
        ),
    ),
    "remixmatch_darp": Job(
        ("remixmatch_darp", "mixup"),
        "files",
        (
            *_short("remixmatch_darp", steps=50, every=4),
            *_short("mixup", steps=20, every=2),
            *("remixmatch_darp.batch=4", "mixup.batch=4", "remixmatch_darp.prior=labeled"),
            *("remixmatch_darp.refine_every=2", "remixmatch_darp.refine_warmup=0.2"),
        ),
    ),
    "crest_plus": Job(
        ("crest_plus", "lws", "posthoc"),
        "features",
        (*_short("crest_plus", steps=600, every=30), *_short("lws", steps=200, every=20)),
    ),
    "csst": Job(
        ("csst", "selmix"),
        "features",
        (*_short("csst", steps=600, every=30), *_short("selmix", steps=200, every=20)),
    ),
}
SIX = tuple(name for name in JOBS if name != "main")


def write_sources(place: Path, jobs: Sequence[Job]) -> None:
    """The files and the features that the jobs train on."""
    if any(job.on == "features" for job in jobs):
        features.write(place / "features", 400, 4, 32)
    if any(job.on == "files" for job in jobs):
        for i, content in enumerate(jpegs(4 * 40)):
            part, kind = ("test" if i >= 4 * 34 else "train"), f"class-{i % 4}"
            file = place / "files" / part / kind / f"{i:03}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def shares(kills: int, jobs: int) -> list[int]:
    """How many kills each job gets; the first ones have one more where they do not divide evenly.

    >>> shares(8, 3)
    [3, 3, 2]
    """
    return [kills // jobs + (i < kills % jobs) for i in range(jobs)]


def start(words: Sequence[str], folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start or continue a job in a process of its own."""
    whole = [sys.executable, str(ROOT / "train.py"), *words, "--out", str(folder), "--resume"]
    with output.open("ab") as file:
        return subprocess.Popen(whole, stdout=file, stderr=subprocess.STDOUT)


def finish(words: Sequence[str], folder: Path, output: Path) -> float:
    """Run a job to its end; return its seconds."""
    since = time.perf_counter()
    if code := start(words, folder, output).wait():
        raise SystemExit(f"the job ended with code {code}:\n{output.read_text()[-2000:]}")
    return time.perf_counter() - since


def validations(folder: Path) -> list[str]:
    """The validations that a run has behind it, such as `2-selmix/150`."""
    found = []
    for path in sorted(folder.glob("*/metrics.jsonl")):
        for line in path.read_text().splitlines():
            if line.startswith('{"kind": "validation"') and line.endswith("}"):
                found.append(f"{path.parent.name}/{json.loads(line)['step']}")
    return found


def weights(folder: Path) -> dict[str, str]:
    """Digest of each checkpoint, but for the wall time in it."""
    digests = {}
    for path in sorted(folder.glob("*/*.pt")):
        state = checkpoint.load(path)
        state.pop("seconds", None)
        digests[str(path.relative_to(folder))] = checkpoint.digest(state)
    return digests


def kill_after(
    process: subprocess.Popen[bytes], folder: Path, target: int, delay: float, number: int
) -> tuple[float, str, int]:
    """Signal when the run has its target-th validation and the delay is over.

    Returns:
        Seconds that the process lived, what it had behind it, and how it ended.
    """
    since, started = time.perf_counter(), time.time()

    def working() -> bool:
        # Until it writes rows itself, those of the process before it are there.
        times = [path.stat().st_mtime for path in folder.glob("*/metrics.jsonl")]
        return len(validations(folder)) >= target and max(times, default=0) > started

    while target and not working() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(number)
    code = process.wait()
    met = (validations(folder) or ["start-up"])[-1] if code else "finished before"
    return time.perf_counter() - since, met, code


def saved_between(folder: Path) -> str:
    """The step of a checkpoint between two validations, if one is there."""
    found = sorted(folder.glob(f"*/{checkpoint.BETWEEN}"))
    return f", saved at step {checkpoint.load(found[-1])['step']}" if found else ""


Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a job: digests of its checkpoints, undisturbed and killed, and exit codes."""

    kills: int
    expected: Mapping[str, str]
    found: Mapping[str, str]
    during: Sequence[str]  # the stage in which each kill fell
    others: Sequence[int]

    @property
    def differ(self) -> list[str]:
        """The checkpoints that are not the same."""
        names = self.expected.keys() | self.found.keys()
        return sorted(n for n in names if self.expected.get(n) != self.found.get(n))

    @property
    def same(self) -> bool:
        """Whether the signals left no trace."""
        return not self.differ and not self.others and bool(self.expected)


def disturbed(
    words: Sequence[str], place: Path, kills: int, number: int, draw: random.Random, say: Say
) -> Outcome:
    """A job with so many signals, beside itself without any."""
    whole, killed, output = place / "undisturbed", place / "killed", place / "output.txt"
    place.mkdir()
    seconds = finish(words, whole, output)
    startup = finish(words, whole, output)  # finished: imports alone
    say(f"undisturbed: {seconds:.1f} s, {startup:.1f} s of it start-up")
    say(f"{'kill':>4}{'life':>12}  last validation before it")
    # Before it listens, the signal ends the process; afterwards it ends itself, with a code.
    allowed, others, during, total = {0, -number, 128 + number}, [], [], len(validations(whole))
    for i in range(kills):
        # Every fifth process dies while it starts; the others somewhere in their part.
        target = 0 if i % 5 == 0 else round(total * i / kills)
        # What answers a signal loses no step: a long delay at each would end the job early.
        answers = number != signal.SIGKILL
        part = (seconds - startup) / total / 4 if answers else seconds / total
        delay = draw.random() * (part if target else startup)
        process = start(words, killed, output)
        life, met, code = kill_after(process, killed, target, delay, number)
        others += [] if code in allowed else [code]
        during.append(met.partition("/")[0])
        say(f"{i + 1:>4}{life:>10.2f} s  {met}{saved_between(killed)}")
    finish(words, killed, output)
    return Outcome(kills, weights(whole), weights(killed), during, others)


def summary(outcomes: Mapping[str, Outcome]) -> str:
    """A row for each job."""
    rows = []
    for name, found in outcomes.items():
        job = JOBS[name]
        places = {s: found.during.count(s) for s in dict.fromkeys(found.during)}
        told = ", ".join(f"{count} {stage}" for stage, count in places.items())
        rows.append(
            [
                *(", ".join(job.stages), job.on, str(found.kills), told),
                *(str(len(found.expected)), str(len(found.differ))),
            ]
        )
    kills = sum(found.kills for found in outcomes.values())
    differ = sum(len(found.differ) for found in outcomes.values())
    checkpoints = sum(len(found.expected) for found in outcomes.values())
    rows.append(["together", "", str(kills), "", str(checkpoints), str(differ)])
    head = ["stages", "trained on", "kills", "last validation before the kill", "checkpoints"]
    return table([*head, "different"], rows)


def compared(found: Outcome) -> str:
    """A line for each checkpoint."""
    lines = [f"{'checkpoint':<36}{'undisturbed':<16}{'killed':<16}"]
    for path in sorted(found.expected.keys() | found.found.keys()):
        pair = [kept.get(path, "missing")[:12] for kept in (found.expected, found.found)]
        verdict = "DIFFERENT" if path in found.differ else "identical"
        lines.append(f"{path:<36}{pair[0]:<16}{pair[1]:<16}{verdict}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, run, compare, print the verdict."""
    parser = argparse.ArgumentParser(description="Kill and resume jobs; compare the bits.")
    parser.add_argument("--kills", type=int, default=100, help="of all jobs together")
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(SIX), metavar="JOB")
    parser.add_argument("--signal", choices=("KILL", "TERM", "HUP", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--minutes", type=float, default=600.0, help="after which no job begins")
    parser.add_argument("--log", type=Path, help="a file for all that is printed; .gz: compressed")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="of every job")
    args = parser.parse_intermixed_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    number, told, end = (
        signal.Signals[f"SIG{args.signal}"],
        [],
        time.monotonic() + 60 * args.minutes,
    )

    def say(text: str) -> None:
        print(text, flush=True)
        told.append(text)
        if args.log is not None:
            content = ("\n".join(told) + "\n").encode()
            args.log.write_bytes(gzip.compress(content) if args.log.suffix == ".gz" else content)

    outcomes: dict[str, Outcome] = {}
    draw = random.Random(args.seed)
    say(f"{about(rounds=1)}; SIG{args.signal}")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_sources(place, [JOBS[job] for job in args.jobs])
        for job, kills in zip(args.jobs, shares(args.kills, len(args.jobs)), strict=True):
            if time.monotonic() > end:
                say(f"\n{job}: no time was left")
                continue
            words = [*JOBS[job].words(place), *args.settings]
            say(f"\n{job}: {' '.join(words).replace(str(place), 'PLACE')}")
            outcomes[job] = found = disturbed(words, place / job, kills, number, draw, say)
            say("\n" + compared(found))
            if found.others:
                say(f"other exit codes: {found.others}")
    same = all(found.same for found in outcomes.values())
    say("\n" + summary(outcomes))
    kills = sum(found.kills for found in outcomes.values())
    say(f"\n{kills} SIG{args.signal}: {'bit-identical' if same else 'NOT identical'}")
    return int(not same)


if __name__ == "__main__":
    raise SystemExit(main())
