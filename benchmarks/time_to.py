"""Time to quality: seconds and images until a recall is held on validation, of several steps.

    python -m benchmarks.time_to --on photographs --data FOLDER --out runs/time-to
    python -m benchmarks.time_to --on features --data features.npz --out runs/time-to

The arms are ways to take the steps of FixMatch + LA: as the field writes it, joint, split, lazy,
lazy with pseudo-labels of the teacher or with the labeled images beside the weak views, with the
teacher's batch statistics copied or averaged, fewer unlabeled images at first (`mu_from`), and a
larger rate with half of the steps; on features, the supervised classifier as well. All arms of a
seed take turns, some steps each and every second time backwards, so that a busy machine slows all
alike.

A recall is held at the first validation that has it and whose successor has it too. Seconds are
those of the processor while steps are taken, without validations; images are all that pass the
network or its average in these steps, with and without gradient. Every arm is saved after its turn:
the same command goes on where it was killed. `--minutes` ends it in between. `--rehearse` takes a
few steps on the digits.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.reference import ReferenceStep
from benchmarks.timing import about, digits, positive, table
from ssl_selmix.common.console import say
from ssl_selmix.common.seeds import seed_of
from ssl_selmix.losses import log_prior
from ssl_selmix.models.execution import Execution, placed
from ssl_selmix.runs import inputs, train
from ssl_selmix.runs.plan import Plan, Request
from ssl_selmix.training import checkpoint, engine, machine
from ssl_selmix.training.log import SilentLog

Row = dict[str, Any]
AVERAGED = "fixmatch.ema_buffers=average"
TEACHER = ("views.lazy=true", "fixmatch.pseudo_labels=teacher")
FAST = (*TEACHER, AVERAGED)


@dataclass(frozen=True)
class Arm:
    """A way to train: settings beside those of the set, a share of its steps, and which method."""

    settings: tuple[str, ...] = ()
    share: float = 1.0
    algo: str = "fixmatch"
    field: bool = False  # the step as the field writes it


ARMS: Mapping[str, Arm] = {
    "field": Arm(field=True),
    "joint": Arm(),
    "joint, averaged": Arm((AVERAGED,)),
    "split": Arm(("views.split=true",)),
    "lazy": Arm(("views.lazy=true",)),
    "lazy, averaged": Arm(("views.lazy=true", AVERAGED)),
    "lazy, with labeled": Arm(("views.lazy=true", "views.with_labeled=true")),
    "lazy, teacher": Arm(TEACHER),
    "lazy, teacher, averaged": Arm(FAST),
    "joint, mu from 1": Arm(("fixmatch.mu_from=1",)),
    "lazy, teacher, mu from 1": Arm((*TEACHER, "fixmatch.mu_from=1")),
    "lazy, teacher, averaged, mu from 1": Arm((*FAST, "fixmatch.mu_from=1")),
    "lazy, teacher, twice the rate": Arm((*TEACHER, "fixmatch.lr=0.06"), share=0.5),
    "lazy, teacher, averaged, twice the rate": Arm((*FAST, "fixmatch.lr=0.06"), share=0.5),
    "supervised": Arm(algo="supervised"),
}
FEATURES = (
    *("joint", "lazy, teacher", "joint, mu from 1", "lazy, teacher, twice the rate"),
    "supervised",
)
# A classifier on features has no batch statistics, and on images the classifier alone is no arm.
IMAGES = tuple(name for name in ARMS if name not in (*FEATURES[3:], "lazy, teacher, mu from 1"))


@dataclass(frozen=True)
class Setting:
    """What is trained on, for how many steps, and which recalls are waited for."""

    dataset: str
    settings: tuple[str, ...]
    arms: tuple[str, ...]
    steps: int
    every: int  # steps between validations, and of a turn
    mean: tuple[int, ...]  # percent
    worst: tuple[int, ...]


SPLIT = (
    *("data.labeled.largest=1500", "data.labeled.rho=100", "data.unlabeled.largest=3000"),
    *("data.unlabeled.rho=100", "data.validation=500"),
)
SETTINGS: Mapping[str, Setting] = {
    "photographs": Setting(
        "image_folder",
        (*SPLIT, "model.name=wrn-10-4-s2", "data.workers=0"),
        *(IMAGES, 1300, 65, (50, 55, 60), (30, 40)),
    ),
    "features": Setting(
        "features",
        SPLIT,
        FEATURES,
        *(2000, 50, (60, 65), (30, 40)),
    ),
    "digits": Setting(
        "digits",
        ("fixmatch.ema=0.99", "precision=fp32"),
        IMAGES[1:],  # the field's transforms are for images with colours
        *(1000, 50, (70, 80), (30, 40)),
    ),
}


@functools.cache
def loaded(dataset: str, words: tuple[str, ...]) -> inputs.Inputs:
    """The images of a seed, which its arms share."""
    return inputs.load_data(Plan(Request(["fixmatch"], dataset, settings=words)))


class Ours:
    """A stage of this package, some steps at a time."""

    def __init__(self, setting: Setting, arm: Arm, steps: int, words: tuple[str, ...]) -> None:
        own = (f"{arm.algo}.steps={steps}", f"{arm.algo}.evaluate_every={steps}")
        # What the set says of FixMatch is not for other methods.
        common = tuple(w for w in words if not w.startswith("fixmatch.") or arm.algo == "fixmatch")
        plan = Plan(Request([arm.algo], setting.dataset, settings=(*common, *arm.settings, *own)))
        found = loaded(setting.dataset, words)
        self.data = found.data.at_stage(plan.stages[0])
        self.algorithm = train.build(plan, 0, self.data.task, self.data.image_shape[0], None)
        placed(self.algorithm, plan.device).train()
        nowhere = (Path("time-to-writes-nothing"), SilentLog(), "time-to")
        self.trainer = engine.Trainer(self.algorithm, self.data, *nowhere)
        self.runner = engine.runner_of(self.algorithm.net, say)
        self._batches: Iterator[Any] | None = None
        self.images = 0
        self.masks: list[float] = []
        nets = {id(m.net): m.net for m in (self.algorithm, self.trainer.teacher)}
        handles = [net.backbone.register_forward_pre_hook(self._count) for net in nets.values()]
        self.hooks = [*handles, self.algorithm.register_forward_hook(self._note)]

    def _count(self, module: Any, given: tuple[torch.Tensor, ...]) -> None:
        self.images += len(given[0])

    def _note(self, module: Any, given: Any, out: Any) -> None:
        if isinstance(out, tuple) and "mask_rate" in out[1]:
            self.masks.append(float(out[1]["mask_rate"]))

    def take(self, steps: int) -> None:
        """So many steps."""
        if self._batches is None:
            self._batches = self.algorithm.batches(self.data, self.trainer.step)
        with self.algorithm.net.trained_by(self.runner):
            for _ in range(steps):
                self.trainer.step_once(self._batches)

    def validation(self) -> Row:
        """Figures of the averaged model."""
        step = self.trainer.step
        seen = engine.evaluate_for(self.algorithm, self.trainer.teacher, self.data, step)
        self.algorithm.on_validation(seen, self.trainer.context())
        return engine.measure(seen, self.data.task.tail)

    def test(self) -> Row:
        """Figures on the test images."""
        return engine.measure_test(self.trainer.teacher, self.data)

    def state(self) -> dict[str, Any]:
        """All that it needs to go on."""
        return self.trainer.between()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.trainer.restore(state)


class Fields:
    """The step as the field writes it, with the labeled loss and the schedule of the others."""

    def __init__(self, setting: Setting, arm: Arm, steps: int, words: tuple[str, ...]) -> None:
        ours = Ours(setting, Arm(), steps, words)
        for hook in ours.hooks:  # which the copy of the network must not have
            hook.remove()
        self.data, self.shown, config = ours.data, ours.algorithm.eval(), ours.algorithm.config
        self.seed, self.step = ours.data.seed, 0
        net = ours.algorithm.net.prepared(Execution("fp32"))
        self.made = ReferenceStep(
            *(net, self.data, config.batch, getattr(config, "mu", 2)),
            workers=0,
            lr=config.lr,
            factor=lambda step: engine.schedule(config.schedule, step, steps),
            log_prior=log_prior(self.data.task.labeled_prior).float(),
        )
        self.teacher = ours.trainer.teacher
        self.images = 0
        self.masks: list[float] = []
        self.per_step = config.batch * (1 + 2 * getattr(config, "mu", 2))

    def take(self, steps: int) -> None:
        """So many steps."""
        # The loaders draw from torch's global generator.
        torch.manual_seed(seed_of(self.seed, "time-to", "field", self.step))
        before = self.made.meters.get("mask", 0.0)
        for _ in range(steps):
            self.made()
        self.step += steps
        self.images += steps * self.per_step
        self.masks.append((self.made.meters["mask"] - before) / steps)

    def _averaged(self) -> Any:
        self.teacher.net.load_state_dict(self.made.averaged.state_dict())
        return self.teacher

    def validation(self) -> Row:
        """Figures of the averaged model."""
        return engine.measure(engine.evaluate(self._averaged(), self.data), self.data.task.tail)

    def test(self) -> Row:
        """Figures on the test images."""
        return engine.measure_test(self._averaged(), self.data)

    def state(self) -> dict[str, Any]:
        """All that it needs to go on, but for what its loaders had drawn ahead."""
        made = self.made
        parts: dict[str, Any] = {
            "net": made.net,
            "averaged": made.averaged,
            "optimizer": made.optimizer,
        }
        found = {name: part.state_dict() for name, part in parts.items()}
        return {**found, "step": self.step, "meters": dict(made.meters)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for part in ("net", "averaged", "optimizer"):
            getattr(self.made, part).load_state_dict(state[part])
        self.step, self.made.meters = state["step"], dict(state["meters"])
        self.made.scheduler.last_epoch = self.step


class Run:
    """An arm with one seed, in a file that it is saved to after every turn."""

    def __init__(
        self, setting: Setting, name: str, seed: int, words: tuple[str, ...], place: Path
    ) -> None:
        arm = ARMS[name]
        self.name, self.seed, self.file = name, seed, place / f"{seed}-{name}.pt"
        self.steps = max(setting.every, round(setting.steps * arm.share))
        self.every = setting.every
        self.rows: list[Row] = []
        self._make: Callable[[], Ours | Fields] = functools.partial(
            Fields if arm.field else Ours, setting, arm, self.steps, words
        )
        self._made: Ours | Fields | None = None
        if self.file.exists():
            self.rows = checkpoint.load(self.file)["rows"]

    @property
    def ended(self) -> bool:
        """Whether all steps are taken."""
        return bool(self.rows) and self.rows[-1]["step"] >= self.steps

    def turn(self) -> None:
        """Some steps, a validation, and the file."""
        if self._made is None:
            self._made = self._make()
            if self.file.exists():
                self._made.restore(checkpoint.load(self.file)["state"])
        made, last = self._made, self.rows[-1] if self.rows else {}
        step = int(last.get("step", 0))
        few = min(self.every, self.steps - step)
        images, wall, processor = made.images, time.perf_counter(), time.process_time()
        made.masks.clear()
        made.take(few)
        took = {"seconds": time.process_time() - processor, "wall": time.perf_counter() - wall}
        took["images"] = made.images - images
        figures = made.validation()
        row = {"step": step + few, "mask_rate": statistics.mean(made.masks or [0.0])}
        row |= {key: last.get(key, 0) + value for key, value in took.items()}
        row |= {"mean": figures["mean_recall"], "worst": figures["min_recall"]}
        self.rows.append(row)
        if self.ended:
            test = made.test()
            row |= {"test_mean": test["mean_recall"], "test_worst": test["min_recall"]}
            self._made = None
        checkpoint.save(self.file, {"rows": self.rows, "state": made.state()})


def held(rows: Sequence[Row], key: str, least: float) -> Row | None:
    """The first validation that has the recall and whose successor has it too.

    >>> rows = [{"mean": 0.5}, {"mean": 0.4}, {"mean": 0.6, "step": 3}, {"mean": 0.5}]
    >>> held(rows, "mean", 0.5)
    {'mean': 0.6, 'step': 3}
    """
    for row, after in itertools.pairwise(rows):
        if min(row[key], after[key]) >= least - 1e-9:
            return row
    return None


def cell(runs: Sequence[Run], key: str, percent: int) -> str:
    """Seconds and thousands of images until a recall is held: medians, and how many get there."""
    found = [held(run.rows, key, percent / 100) for run in runs]
    reached = [row for row in found if row is not None]
    if not reached:
        return f"0 of {len(runs)}"
    seconds, images = (statistics.median(row[k] for row in reached) for k in ("seconds", "images"))
    some = "" if len(reached) == len(runs) else f" ({len(reached)} of {len(runs)})"
    return f"{digits(seconds)} s, {images / 1000:.0f}k{some}"


def report(setting: Setting, runs: Sequence[Run]) -> str:
    """A row for each arm, of the runs that ended."""
    goals = [("mean", p) for p in setting.mean] + [("worst", p) for p in setting.worst]
    head = ["step", "n", "steps", "mask rate", "s", "images", *(f"{k} {p}" for k, p in goals)]
    rows = []
    for name in setting.arms:
        own = [run for run in runs if run.name == name and run.ended]
        if not own:
            continue
        ends = [run.rows[-1] for run in own]
        masks = [statistics.mean(row["mask_rate"] for row in run.rows) for run in own]
        cells = [name, str(len(own)), str(ends[0]["step"]), f"{statistics.mean(masks):.2f}"]
        cells += [digits(statistics.median(end["seconds"] for end in ends))]
        cells += [f"{statistics.median(end['images'] for end in ends) / 1000:.0f}k"]
        cells += [cell(own, key, percent) for key, percent in goals]
        for key in ("test_mean", "test_worst"):
            values = [100 * end[key] for end in ends]
            off = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{off}")
        rows.append(cells)
    return table([*head, "test: mean", "test: worst"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Take turns until all arms have ended, or the time is up; print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--on", choices=list(SETTINGS), default="photographs")
    parser.add_argument("--data", default="", help="folder of photographs, or file of features")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="default: all of the set")
    parser.add_argument("--steps", type=positive, help="of an arm; default: those of the set")
    parser.add_argument("--every", type=positive, help="steps of a turn")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no turn begins")
    parser.add_argument("--out", type=Path, default=Path("runs/time-to"))
    parser.add_argument("--rehearse", action="store_true", help="a few steps on the digits")
    parser.add_argument("words", metavar="key=value", nargs="*", help="settings of every arm")
    args = parser.parse_intermixed_args(argv)
    name = "digits" if args.rehearse else args.on
    of_set = SETTINGS[name]
    setting = Setting(
        *(of_set.dataset, of_set.settings, tuple(args.arms or of_set.arms)),
        *((6, 2) if args.rehearse else (args.steps or of_set.steps, args.every or of_set.every)),
        *(of_set.mean, of_set.worst),
    )
    machine.use_threads(1)
    machine.use_repeatable_kernels()
    more = (*((f"data.root={args.data}",) if args.data else ()), "threads=1", *args.words)
    place = args.out / name
    place.mkdir(parents=True, exist_ok=True)
    end, runs = time.monotonic() + 60 * args.minutes, []
    for seed in args.seeds:
        words = (*setting.settings, *more, f"seed={seed}")
        own = [Run(setting, arm, seed, words, place) for arm in setting.arms]
        runs += own
        order = own
        while time.monotonic() < end and any(not run.ended for run in own):
            for run in order:
                if not run.ended and time.monotonic() < end:
                    run.turn()
                    told = json.dumps({k: round(v, 4) for k, v in run.rows[-1].items()})
                    print(f"{seed} {run.name}: {told}", flush=True)
            order = order[::-1]
        loaded.cache_clear()
    print(f"\n{about(rounds=len(args.seeds), threads=1)}\n\n{report(setting, runs)}")


if __name__ == "__main__":
    main()
