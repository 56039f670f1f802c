"""Does `kill` leave a trace? The main job, killed at random moments and resumed, bit for bit.

    OMP_NUM_THREADS=1 python studies/kill_resume.py --kills 20 --seed 0 [--signal TERM] [key=value]

Runs `--algo fixmatch --then selmix` on the digits once undisturbed, and once more with a signal at
random moments spread over all of the job's validations, each followed by `--resume`: SIGKILL, or
one that the job answers by saving after the step. Compares all checkpoints. Exit code 1 if any bit
differs, or if the job answers with another code than its own for that signal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ssl_selmix.training import checkpoint

ROOT = Path(__file__).resolve().parents[1]
JOB = ["--algo", "fixmatch", "--then", "selmix", "--dataset", "digits"]


def start(folder: Path, settings: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    """Start or continue the job in a process of its own."""
    words = [sys.executable, str(ROOT / "train.py"), *JOB, "--out", str(folder), "--resume"]
    with output.open("ab") as file:
        return subprocess.Popen([*words, *settings], stdout=file, stderr=subprocess.STDOUT)


def finish(folder: Path, settings: Sequence[str], output: Path) -> float:
    """Run the job to its end; return its seconds."""
    since = time.perf_counter()
    if code := start(folder, settings, output).wait():
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


def main() -> int:
    """Parse the arguments, run, compare, print the verdict."""
    parser = argparse.ArgumentParser(description="Kill and resume the main job; compare the bits.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signal", choices=("KILL", "TERM", "HUP", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="such as selmix.steps=50")
    args = parser.parse_intermixed_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    number = signal.Signals[f"SIG{args.signal}"]
    # Before it listens, the signal ends the process; afterwards it ends itself, with a code.
    allowed, others = {0, -number, 128 + number}, []
    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name), Path(name) / "output.txt"
        seconds = finish(folder / "undisturbed", args.settings, output)
        startup = finish(folder / "undisturbed", args.settings, output)  # finished: imports alone
        print(f"undisturbed: {seconds:.1f} s, {startup:.1f} s of it start-up")
        print(f"{'kill':>4}{'life':>12}  last validation before it")
        draw, total = random.Random(args.seed), len(validations(folder / "undisturbed"))
        for i in range(args.kills):
            # Every fifth process dies while it starts; the others somewhere in their part.
            target = 0 if i % 5 == 0 else round(total * i / args.kills)
            # What answers a signal loses no step: a long delay at each would end the job early.
            part = seconds / total if args.signal == "KILL" else (seconds - startup) / total / 4
            delay = draw.random() * (part if target else startup)
            process = start(folder / "killed", args.settings, output)
            place = folder / "killed"
            life, met, code = kill_after(process, place, target, delay, number)
            others += [] if code in allowed else [code]
            print(f"{i + 1:>4}{life:>10.2f} s  {met}{saved_between(place)}", flush=True)
        finish(folder / "killed", args.settings, output)
        expected, found = weights(folder / "undisturbed"), weights(folder / "killed")
    print(f"\n{'checkpoint':<28}{'undisturbed':<16}{'killed':<16}")
    for path in sorted(expected.keys() | found.keys()):
        pair = expected.get(path, "missing")[:12], found.get(path, "missing")[:12]
        same = expected.get(path) == found.get(path)
        print(f"{path:<28}{pair[0]:<16}{pair[1]:<16}{'identical' if same else 'DIFFERENT'}")
    same = expected == found
    print(f"{args.kills} SIG{args.signal}:", "bit-identical" if same else "NOT identical")
    if others:
        print(f"other exit codes: {others}")
    return int(not same or bool(others))


if __name__ == "__main__":
    raise SystemExit(main())
