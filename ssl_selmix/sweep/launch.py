"""What `ssl-selmix sweep` does: list, write a job array, or run what is missing and report."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ssl_selmix.common.alike import sentence, unlike
from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.console import console
from ssl_selmix.common.locks import locked
from ssl_selmix.sweep import cluster, forks, processes
from ssl_selmix.sweep.processes import BLOCKED, BUSY, FAILED, Job, Outcome
from ssl_selmix.sweep.runs import CHANGED, FINISHED, Run, Sweep
from ssl_selmix.sweep.spec import Spec

MARK = "ssl-selmix sweep"  # in every script that --slurm writes


def sweep(
    spec: Spec,
    again: Sequence[str] = (),
    *,
    dry_run: bool = False,
    only: str | None = None,
    jobs: int | None = None,
    engine: str = "forks",
    slurm: Path | None = None,
) -> int:
    """Do it; 0 if every run is finished, 1 if one is not.

    Args:
        spec: what to run.
        again: the words after `ssl-selmix sweep` that ask for the same spec.
        dry_run: list the runs and how far each has come.
        only: the one chain to work on, by its number or by its first folder below `out`.
        jobs: how many chains at a time.
        engine: `forks` of a process that has imported all, `processes` of this machine, or `ray`.
        slurm: the file for a job array instead.

    Raises:
        ValueError: a mistake in the spec, or runs that were made with other settings.
    """
    if engine == "ray" and (jobs or slurm):
        raise ValueError("Ray counts cores itself; leave out --jobs and --slurm with --engine ray")
    for place in (spec.out, *spec.out.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{spec.out} cannot be a folder, for {place} is a file; change out")
    planned, out = Sweep(spec), console()
    chains = planned.chains
    indices = range(len(chains)) if only is None else [_index(planned, only)]
    if dry_run:
        _list(planned, indices, out)
        return 0
    _refuse_changed(planned, indices)
    left = {i: job for i in indices if (job := _job(planned, i)).runs}
    if slurm is not None:
        _write_script(planned, again, list(left), jobs, slurm, out)
        return 0
    _note_strangers(planned, out)
    todo = [run for job in left.values() for run in job.runs]
    total = sum(len(chains[index]) for index in indices)
    _say(out, f"{spec.out}: {len(todo)} of {total} runs are left")
    if todo:
        _note_unlike(planned, out)
    if only is not None:  # the tasks of a job array share the folder
        return _run(planned, list(left.values()), todo, jobs, engine, out)
    with locked(spec.out / ".lock", f"sweeps {spec.out}"):
        return _run(planned, list(left.values()), todo, jobs, engine, out)


def _index(planned: Sweep, only: str) -> int:
    names = planned.names
    if only in names:
        return names.index(only)
    if only.isdecimal() and int(only) < len(names):
        return int(only)
    raise ValueError(
        f"--only must be 0 to {len(names) - 1}, or a chain's first folder such as {names[0]}, not "
        f"{only}"
    )


def _job(planned: Sweep, index: int) -> Job:
    chain = planned.chains[index]
    left = tuple(run for run in chain if planned.standings[run.folder][0] != FINISHED)
    return Job(chain[0].folder, left)


def _list(planned: Sweep, indices: Sequence[int], out: Console) -> None:
    counts: Counter[str] = Counter()
    _note_unlike(planned, out)
    for index in indices:
        for run in planned.chains[index]:
            state, detail = planned.standings[run.folder]
            counts[state] += 1
            _say(out, f"{index:4}  {state:9}  {run.folder}{f'  ({detail})' if detail else ''}")
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    _say(out, f"{counts.total()} runs in {len(indices)} chains: {told}")
    _note_strangers(planned, out)


def _refuse_changed(planned: Sweep, indices: Sequence[int]) -> None:
    runs = [run for index in indices for run in planned.chains[index]]
    found = [run.folder for run in runs if planned.standings[run.folder][0] == CHANGED]
    if found:
        told = "; ".join(f"{folder}: {planned.standings[folder][1]}" for folder in found[:3])
        more = f"; and {len(found) - 3} more, see --dry-run" if len(found) > 3 else ""
        raise ValueError(
            f"{planned.spec.origin} asks for other settings than runs in {planned.spec.out} have: "
            f"{told}{more}; take the change back, or use another --out, or move these runs away"
        )


def _note_strangers(planned: Sweep, out: Console) -> None:
    """Name runs in the folder that the file does not mean (any more); a table might take them."""
    ours = {run.folder for run in planned.runs}
    found = [p.parent for p in sorted(planned.spec.out.glob("*/*/*/config.yaml"))]
    if strangers := [str(folder) for folder in found if folder not in ours]:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        _say(out, f"note: not of this sweep: {', '.join(strangers[:3])}{more}")


def _note_unlike(planned: Sweep, out: Console) -> None:
    """Name settings that the algorithms have under one name with other values, before any trains.

    Arms of one algorithm differ as the file asks for.
    """
    parts: dict[str, list[tuple[str, Mapping[str, Any]]]] = {"first": [], "second": []}
    for run in planned.runs:
        parts["second" if run.base else "first"].append(planned.told(run))
    for which, told in parts.items():
        if found := unlike(told):
            _say(out, f"note: settings of {which} stages that are not the same: {sentence(found)}")


def _write_script(
    planned: Sweep,
    again: Sequence[str],
    indices: Sequence[int],
    jobs: int | None,
    path: Path,
    out: Console,
) -> None:
    if not indices:
        _say(out, f"all {len(planned.runs)} runs are finished; no script is needed")
        return
    if path.exists() and (path.is_dir() or MARK not in path.read_text(errors="replace")):
        raise ValueError(f"{path} exists and is no script of a sweep; choose another file")
    if not path.parent.is_dir():
        raise ValueError(f"no folder {path.parent}; create it")
    planned.spec.out.mkdir(parents=True, exist_ok=True)  # SLURM makes no folder for its output
    script = cluster.slurm_script(planned, again, indices, _threads(planned), jobs)
    write_atomically(path.resolve(), script.encode())
    _say(out, f"{path}: {len(indices)} tasks, a chain of runs each; submit with sbatch {path}")


def _threads(planned: Sweep) -> int:
    return max(planned.plan(run).run.threads for run in planned.runs)


def _run(
    planned: Sweep,
    left: Sequence[Job],
    todo: Sequence[Run],
    jobs: int | None,
    engine: str,
    out: Console,
) -> int:
    if not todo:
        return 0
    if sys.platform == "win32":  # no sessions, no signals to a group, no locks
        raise ValueError("a sweep needs Linux, macOS or WSL; use ssl-selmix train here")
    planned.prove(todo)
    with _Report(len(todo), out) as report:
        if engine == "ray":
            on_gpu = any(run.settings.get("device") != "cpu" for run in todo)
            outcomes = cluster.by_ray(left, _threads(planned), on_gpu, report.tell)
        else:
            forked = engine == "forks" and forks.possible()
            outcomes = _by_processes(planned, left, todo, jobs, report, forked)
    return _summary(outcomes, out)


def _by_processes(
    planned: Sweep,
    left: Sequence[Job],
    todo: Sequence[Run],
    jobs: int | None,
    report: _Report,
    forked: bool,
) -> list[Outcome]:
    threads, cores = _threads(planned), processes.cores()
    devices = processes.devices_of(todo)
    gpus = processes.visible_gpus(devices)
    count = min(jobs or processes.default_jobs(devices, threads, gpus, cores), len(left))
    places = processes.places(count, threads, gpus, cores)
    where = f", on {len(set(gpus[:count]))} GPUs" if gpus else ""
    report.say(f"{count} at a time{where}; the output of each is in log.txt in its folder")
    data = {}
    for run in todo:
        plain = planned.plan(run).plain
        library = str(plain["model"]["name"]).partition(":")[0]
        data[str(run.folder)] = (run.dataset, plain["data"], library)
    start = partial(forks.Forks, data) if forked else None
    return processes.by_processes(left, places, report.tell, start)


class _Report:
    """A line per run that ended, and a bar below them on a terminal."""

    def __init__(self, total: int, out: Console) -> None:
        self._total, self._out, self._count = total, out, 0
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("runs"), TimeElapsedColumn())
        self._bar = Progress(*columns, console=out, disable=not out.is_terminal)
        self._guard = threading.Lock()

    def __enter__(self) -> _Report:
        self._bar.start()
        self._task = self._bar.add_task("", total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """One line."""
        _say(self._out, text)

    def tell(self, outcome: Outcome) -> None:
        """The line of a run that ended."""
        with self._guard:
            self._count += 1
            place = f"[{self._count:{len(str(self._total))}}/{self._total}]"
            took = f" in {outcome.seconds:.0f} s" if outcome.seconds else ""
            self.say(f"{place} {outcome.run.folder}: {outcome.state}{took}; {outcome.said}")
            self._bar.advance(self._task)


def _summary(outcomes: Sequence[Outcome], out: Console) -> int:
    """What is not finished, again at the end, where it is seen."""
    counts = Counter(outcome.state for outcome in outcomes)
    _say(out, ", ".join(f"{count} {state}" for state, count in counts.items()))
    for outcome in outcomes:
        if outcome.state == FAILED:
            _say(out, f"failed: {outcome.run.folder / 'log.txt'} ends with: {outcome.said}")
    if counts[BLOCKED] or counts[FAILED] or counts[BUSY]:
        _say(out, "the same command runs what is left")
    return 0 if set(counts) == {FINISHED} else 1


def _say(out: Console, text: str) -> None:
    out.print(text, highlight=False, markup=False)
