"""A sweep: the runs that its file means, checked before one starts, and how far each has come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from functools import cached_property
from pathlib import Path
from typing import Any

from ssl_selmix import algorithm
from ssl_selmix.common import config, fields, plugins
from ssl_selmix.runs import load, train
from ssl_selmix.runs.folder import CONFIG, RunError, RunFolder
from ssl_selmix.runs.inputs import Inputs, load_data
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.sweep.spec import FIRST, SECOND, Arm, Spec, slug
from ssl_selmix.training import checkpoint

FINISHED, RESUMABLE, MISSING, CHANGED = "finished", "resumable", "missing", "changed"


@dataclass(frozen=True)
class Run:
    """One run of `ssl-selmix train`: a row of the table, on one split, from one seed."""

    folder: Path
    split: str
    arms: tuple[str, ...]  # the first stage, then the second stages up to this one
    seed: int
    algo: str
    dataset: str
    preset: str | None
    settings: Mapping[str, Any]
    base: Path | None  # the folder of the run whose weights this one starts from

    def request(self, *more: str) -> Request:
        """What `ssl-selmix train` is asked for, but for the weights that another run must make."""
        words = [*(word(*item) for item in self.settings.items()), *more]
        return Request([self.algo], self.dataset, self.preset, settings=words)

    def command(self) -> list[str]:
        """The words after `ssl-selmix`."""
        request = self.request(f"seed={self.seed}")
        words = ["train", "--algo", self.algo, "--dataset", self.dataset]
        words += ["--preset", self.preset] if self.preset else []
        words += ["--init", str(self.base)] if self.base else []
        return [*words, "--out", str(self.folder), "--resume", *request.settings, *self._chosen()]

    def _chosen(self) -> list[str]:
        """The number format that some machine chose for this run or the one it starts from."""
        if self.settings.get("precision", "auto") != "auto":
            return []
        for folder in filter(None, (self.folder, self.base)):
            try:
                return [f"precision={RunFolder(folder).config['precision']}"]
            except (RunError, LookupError):
                continue
        return []


def word(key: str, value: Any) -> str:
    """`key=value` for the command line, which reads the same value from it."""
    return f"{key}={fields.typed(value)}"


class Sweep:
    """A spec with its runs, checked like the command lines that it stands for; reads no image.

    Raises:
        ValueError: an unknown algorithm or key, a wrong value, a setting that no run can use.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._plans: dict[str, Plan] = {}
        self._short = {a.algo: self._named(name, a.algo) for name, a in spec.arms.items()}
        self._check_sections()
        self._check_starts()
        seeds = dict.fromkeys(seed for found in spec.seeds.values() for seed in found)
        pairs = [(seed, name) for seed in seeds for name in spec.splits if seed in spec.seeds[name]]
        self.chains = [self._chain(*pair, first) for pair in pairs for first in spec.algorithms]
        for run in self.runs:
            self.plan(run)

    @property
    def runs(self) -> list[Run]:
        """All runs, each after the one that it starts from."""
        return [run for chain in self.chains for run in chain]

    @property
    def names(self) -> list[str]:
        """Of the chains: their first folders below that of all runs."""
        return [chain[0].folder.relative_to(self.spec.out).as_posix() for chain in self.chains]

    def _named(self, arm: str, algo: str) -> str:
        try:
            return algorithm.load(algo)[0]
        except ValueError as error:
            raise ValueError(f"{self.spec.origin}, arm {arm!r}: {error}") from error

    def _check_sections(self) -> None:
        """A section that every run would leave out is a mistake, not a setting."""
        known = set(plugins.available("algorithm")) - set(self._short.values())
        absent = known | (set() if self.spec.then else {SECOND})
        for settings in (self.spec.settings, *self.spec.splits.values(), self.spec.words):
            for key in settings:
                if (section := key.partition(".")[0]) in absent:
                    raise ValueError(
                        f"{self.spec.origin}: {key} is set and no run has the section {section}"
                    )

    def _check_starts(self) -> None:
        """A stage that takes no step cannot begin a chain, unless it makes a classifier.

        Nor can one of two networks follow one.
        """
        for name in self.spec.algorithms:
            kind = algorithm.load(self.spec.arms[name].algo)[1]
            if not kind.trains and kind.needs_classifier:
                raise ValueError(
                    f"{self.spec.origin}: {name} trains nothing and cannot come first; put it "
                    "under then"
                )
        for name, arm in self.spec.then.items():
            first = [
                one for one in arm.after or self.spec.algorithms if one in self.spec.algorithms
            ]
            if first and algorithm.load(arm.algo)[1].needs_origin:
                raise ValueError(
                    f"{self.spec.origin}: {name} needs two networks, and {first[0]} before it "
                    f"begins with random weights; name a second stage, as in {name}: "
                    "{after: selmix}"
                )

    def _chain(self, seed: int, split: str, first: str) -> list[Run]:
        chain = [self._run(seed, split, (first,), None)]
        for name, arm in self.spec.then.items():
            for base in list(chain):
                if base.arms[-1] in arm.after if arm.after else len(base.arms) == 1:
                    chain.append(self._run(seed, split, (*base.arms, name), base.folder))
        return chain

    def _run(self, seed: int, split: str, names: tuple[str, ...], base: Path | None) -> Run:
        spec, arms = self.spec, [self.spec.arms[name] for name in names]
        presets = [p for p in (spec.preset, *(arm.preset for arm in arms)) if p]
        place = (slug(split), "+".join(map(slug, names)), f"seed-{seed}")
        return Run(
            folder=spec.out.joinpath(*place),
            split=split,
            arms=names,
            seed=seed,
            algo=arms[-1].algo,
            dataset=spec.dataset,
            preset=presets[-1] if presets else None,
            settings=self._settings(split, arms),
            base=base,
        )

    def _settings(self, split: str, arms: Sequence[Arm]) -> dict[str, Any]:
        """Those of all, of the split, of the arm, of the command line; later ones win.

        A second stage inherits what the arms before it say about data and network.
        """
        own = self._short[arms[-1].algo]
        others = {FIRST, SECOND, *self._short.values()}
        mine = {own, FIRST if len(arms) == 1 else SECOND}
        # What all second stages are told about steps is not meant for one that takes none.
        trains = algorithm.load(arms[-1].algo, first=len(arms) == 1)[1].trains
        about_steps = set() if trains else {f.name for f in fields_of(algorithm.Algorithm.Config)}
        found: dict[str, Any] = {}

        def add(settings: Mapping[str, Any], left_out: set[str]) -> None:
            for key, value in settings.items():
                section, dot, rest = key.partition(".")
                if section == SECOND and rest in about_steps:
                    continue
                if not dot or section not in left_out:
                    found[f"{own}.{rest}" if dot and section in mine else key] = value

        add(self.spec.settings, others - mine)
        add(self.spec.splits[split], others - mine)
        for arm in arms[:-1]:
            add(arm.settings, others)
        add(arms[-1].settings, set())
        add(self.spec.words, others - mine)
        return found

    def plan(self, run: Run) -> Plan:
        """The checked configuration of a run, shared by runs that differ in seed and base only."""
        key = config.fingerprint(run.algo, run.preset, run.settings)
        if key not in self._plans:
            try:
                # On the CPU: the processes that train take the device, this one only looks.
                self._plans[key] = Plan(run.request(f"seed={run.seed}", "device=cpu"))
            except ValueError as error:
                said = str(error).removesuffix(" (command line)")
                raise ValueError(f"{self._where(run)}: {said}") from error
        return self._plans[key]

    def told(self, run: Run) -> tuple[str, dict[str, Any]]:
        """The name of the run's algorithm, and its settings by dotted key."""
        name = self._short[run.algo]
        return name, config.flatten(self.plan(run).plain[name])

    def _where(self, run: Run) -> str:
        return f"{self.spec.origin}, {run.split}, {' + '.join(run.arms)}"

    def prove(self, runs: Iterable[Run]) -> None:
        """Read the images of every split once and build every algorithm for them.

        Raises:
            ValueError: what would end a run only after the stage before it was trained.
        """
        kinds: dict[str, dict[int, tuple[Run, Plan]]] = {}
        for run in runs:
            plan = self.plan(run)
            kinds.setdefault(config.fingerprint(plan.plain["data"]), {})[id(plan)] = (run, plan)
        for kind in kinds.values():
            inputs: Inputs | None = None
            for run, plan in kind.values():
                try:
                    inputs = inputs or load_data(plan, extract=False)
                    train.build(plan, 0, inputs.data.task, inputs.data.image_shape[0], None)
                except ValueError as error:
                    raise ValueError(f"{self._where(run)}: {error}") from error

    @cached_property
    def standings(self) -> dict[Path, tuple[str, str]]:
        """State of every run by folder, and what differs in one that was made otherwise."""
        found: dict[Path, tuple[str, str]] = {}
        digests: dict[Path, str] = {}
        for run in self.runs:
            if run.base and RunFolder(run.folder).has(CONFIG) and run.base not in digests:
                digests[run.base] = _digest(run.base) if found[run.base][0] == FINISHED else ""
            found[run.folder] = self._standing(run, digests.get(run.base) if run.base else None)
        return found

    def _standing(self, run: Run, base_sha256: str | None) -> tuple[str, str]:
        folder = RunFolder(run.folder)
        if not folder.has(CONFIG):
            return MISSING, ""
        try:
            written = dict(folder.config)
        except RunError:
            return CHANGED, f"{CONFIG} is damaged"
        plan = self.plan(run)
        wanted = plan.identity() | {"seed": run.seed}
        if run.base and base_sha256:
            path = dict(written.get("init") or {}).get("path")  # may be written in two ways
            wanted["init"] = {"path": path, "sha256": base_sha256}
        elif run.base:  # its weights do not exist, not yet or not any more
            written.pop("init", None)
        if _machine_decides(plan):
            written["precision"] = wanted["precision"]
        if changed := config.differences(written, wanted):
            return CHANGED, "; ".join(changed)
        return (FINISHED if is_finished(run.folder) else RESUMABLE), ""


def _machine_decides(plan: Plan) -> bool:
    """Whether the number format is the machine's choice, which may be another machine's."""
    asked = [settings["precision"] for _, settings in plan.layers if "precision" in settings]
    return asked[-1:] in ([], ["auto"])


def _digest(base: Path) -> str:
    try:
        return checkpoint.digest(load.read(base))
    except ValueError:  # checkpoints are large; a finished run may have lost them
        return ""


def is_finished(folder: Path) -> bool:
    """Whether a run of one stage has measured it."""
    try:
        return len(RunFolder(folder).stages) == 1
    except RunError:
        return False
