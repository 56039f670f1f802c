"""Sweeps: the file, the runs it means, and that nothing is run twice, lost or mixed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import IO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ssl_selmix import cli, objectives
from ssl_selmix.common import config, plugins
from ssl_selmix.common.locks import Busy, locked
from ssl_selmix.common.text import load as load_yaml
from ssl_selmix.sweep import cluster, forks, processes
from ssl_selmix.sweep.processes import Children, Job, Outcome
from ssl_selmix.sweep.runs import CHANGED, FINISHED, MISSING, RESUMABLE, Sweep, word
from ssl_selmix.sweep.spec import parse, read, slug
from tests.helpers.results import results, stage
from tests.helpers.runs import unbound

TINY = """
out: out
seeds: [0, 1]
settings:
  model.name: cnn-4
  data: {labeled.largest: 15, unlabeled.largest: 20, validation: 3, test: 3}
  threads: 1
  pictures: false
  algo: {steps: 2, batch: 4}
  then: {steps: 2, batch: 4}
splits:
  same: {data.unlabeled.shape: long_tail}
algorithms:
  supervised:
  no tau: {algo: supervised, settings: {algo.logit_adjustment: 0, model.name: cnn-2}}
then:
  selmix:
  crt: {after: supervised}
"""
ROOT = Path(cli.__file__).resolve().parents[1]
FIRST = Path("out/same/supervised/seed-0")
AFTER = Path("out/same/supervised+selmix/seed-0")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)


def tiny(*words: str, out: str | None = None) -> Sweep:
    return Sweep(read("tiny.yaml", words, Path(out) if out else None))


# --- The file ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_digits_table_has_every_algorithm_and_second_stage() -> None:
    sweep = Sweep(read("digits"))
    everywhere = {"selmix", "posthoc"}
    second = {
        *everywhere,
        "debias",
        "gda",
        "balanced_subsampling",
        "crt",
        "lws",
        "mixup",
        "cutmix",
        "wise_ft",
        "smote",
        "weight_balancing",
    }
    rows = {(run.split, run.seed, run.arms): run for run in sweep.runs}
    assert {run.algo for run in sweep.runs} == set(plugins.available("algorithm"))
    firsts = {arms[0] for _, _, arms in rows}
    assert firsts == (set(plugins.available("algorithm")) - second) | {
        *("fixmatch plain", "supervised plain")
    }
    assert {arms for _, _, arms in rows if len(arms) == 2} == {
        *((first, then) for first in firsts for then in everywhere),
        *(("fixmatch", then) for then in ("crt", "lws", "mixup", "cutmix", "debias", "gda")),
        *(("fixmatch", then) for then in ("thresholds by priors", "balanced sub-sampling")),
        *(("fixmatch", then) for then in ("smote", "weight_balancing")),
    }
    thirds = {("selmix", "posthoc after selmix"), ("posthoc", "selmix after posthoc")}
    assert {arms for _, _, arms in rows if len(arms) == 3} == {
        (first, *then) for first in firsts for then in (*thirds, ("selmix", "wise_ft"))
    }
    assert {(split, seed) for split, seed, _ in rows} == {
        (split, seed) for split in ("same", "inverted") for seed in (0, 1, 2)
    }
    assert len(rows) == 2 * 3 * (6 * len(firsts) + 10)
    for run in sweep.runs:
        plan = sweep.plan(run)
        name = plan.algorithms[0][0]
        assert plan.config[name].steps == (
            2000
            if run.base is None
            else 0
            if name in ("posthoc", "wise_ft", "debias", "gda")
            else 400
        )
        assert plan.config["model"].name == "cnn-16" and plan.run.threads == 1
        pool = {"same": "long_tail", "inverted": "inverted"}[run.split]
        assert plan.config["data"].unlabeled.shape == pool
        if run.algo in ("fixmatch", "supervised"):
            tau = plan.config[name].logit_adjustment
            assert tau == (0.0 if run.arms[0].endswith("plain") else 1.0)


@pytest.mark.slow
def test_the_photographs_have_one_network_and_one_length_of_training() -> None:
    firsts = {"fixmatch", "fixmatch plain", "supervised", "abc", "csst", "daso", "crest_plus"}
    study, long = Sweep(read("cifar10-jpeg")), Sweep(read("cifar10-jpeg-long"))
    assert {run.arms[0] for run in study.runs} == firsts
    seeds = {split: {r.seed for r in study.runs if r.split == split} for split in study.spec.splits}
    others = {split: {0} for split in ("uniform", "uniform 3000", "inverted")}
    assert seeds == {"same": {0, 1, 2}, **others}
    assert {(r.split, r.arms[0]) for r in long.runs} == {(s, "fixmatch") for s in long.spec.splits}
    for sweep, steps in ((study, 200), (long, 5000)):
        for run in sweep.runs:
            plan = sweep.plan(run)
            found = plan.config[plan.algorithms[0][0]]
            trains = run.algo not in ("posthoc", "wise_ft")
            assert found.steps == (1300 if run.base is None else steps * trains)
            assert plan.config["model"].name == "wrn-10-4-s2" and plan.run.precision == "bf16"
            if run.base is not None and run.algo == "selmix":
                assert (found.mix == "none") == ("without mixing" in run.arms[1]) or sweep is study
                assert (found.step == "fixed") == run.arms[-1].startswith("fixed")
                assert found.spread == (1 if run.arms[1] == "default spread" else 4)


def test_the_objectives_are_all_there_and_start_alike() -> None:
    sweep = Sweep(read("objectives"))
    found = {run.arms: sweep.plan(run).config for run in sweep.runs if run.seed == 0}
    seconds = {arms[1]: config["selmix"].objective for arms, config in found.items() if arms[1:]}
    assert seconds == {name: name for name in objectives.DESCRIPTIONS}
    assert {run.seed for run in sweep.runs} == {0, 1, 2, 3, 4} and len(sweep.chains) == 5


def test_the_controls_differ_from_selmix_in_how_they_pair_and_mix() -> None:
    sweep = Sweep(read("controls"))
    assert len(sweep.chains) == 2 * 15
    found = [(run, sweep.plan(run).config) for run in sweep.chains[0] if run.arms[1:]]
    arms = {
        run.arms[1]: c["selmix"] for run, c in found if run.algo == "selmix" and not run.arms[2:]
    }
    assert {name: (c.policy, c.mix) for name, c in arms.items()} == {
        "selmix": ("selective", "feature"),
        "plain fine-tuning": ("natural", "none"),
        "same P without mixing": ("selective", "none"),
        "uniform pairs": ("uniform", "feature"),
        "greedy pairs": ("greedy", "feature"),
    }
    same = [replace(c, policy="selective", mix="feature") for c in arms.values()]
    assert all(config == arms["selmix"] for config in same)


@pytest.mark.parametrize("name", ["controls", "digits"])
def test_what_trains_nothing_aims_at_what_selmix_aims_at(name: str) -> None:
    sweep = Sweep(read(name))
    first = "fixmatch"
    (chain,) = [c for c in sweep.chains if c[0].arms == (first,) and c[0].split == "same"][:1]
    found = {run.arms[1:]: (run.algo, sweep.plan(run).config[run.algo]) for run in chain}
    aimed = {arms for arms, (_, c) in found.items() if getattr(c, "objective", "") == "min_recall"}
    assert aimed >= {
        *(("selmix",), ("posthoc",), ("thresholds by priors",), ("selmix", "wise_ft")),
        *(("selmix", "posthoc after selmix"), ("posthoc", "selmix after posthoc")),
    }
    assert found["thresholds by priors",][1].rule == "labeled_prior"
    kept = found["balanced sub-sampling",][1]
    assert kept.select == "min_recall" and not kept.body_lr and kept.steps == 400


def test_the_help_lists_the_shipped_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["sweep", "--help"])
    shown = capsys.readouterr().out
    assert plugins.sweeps().keys() == {
        *("cifar10-jpeg", "cifar10-jpeg-long", "controls", "digits", "digits-pools", "features"),
        *("objectives", "trust"),
    }
    for name, line in plugins.sweeps().items():
        assert line and f"{name} " in shown and line in shown


def test_the_file_in_the_documentation_means_what_it_says() -> None:
    text = (ROOT / "docs" / "howto" / "sweep.md").read_text()
    spec = text.partition("```yaml\n")[2].partition("```")[0]
    sweep = Sweep(parse(spec, "x.yaml"))
    assert f"{len(sweep.runs)} runs" in text and len(sweep.chains) == 2 * 3 * 3
    arms = [run.arms for run in sweep.chains[1]]
    assert arms == [("fixmatch",), *(("fixmatch", s) for s in ("selmix", "selmix h_mean", "crt"))]
    assert sweep.plan(sweep.chains[1][2]).config["selmix"].objective == "h_mean"


def test_a_run_is_one_command_line() -> None:
    first, after, _, *_ = tiny("device=cpu").runs
    common = [
        *("model.name=cnn-4", "data.labeled.largest=15", "data.unlabeled.largest=20"),
        *("data.validation=3", "data.test=3", "threads=1", "pictures=false"),
    ]
    pool = "data.unlabeled.shape=long_tail"
    own = ["supervised.steps=2", "supervised.batch=4"]
    words = ["train", "--algo", "supervised", "--dataset", "digits", "--out", str(FIRST)]
    assert first.command() == [*words, "--resume", *common, *own, pool, "device=cpu", "seed=0"]
    words = ["train", "--algo", "selmix", "--dataset", "digits", "--init", str(FIRST)]
    words += ["--out", str(AFTER), "--resume", *common, "selmix.steps=2", "selmix.batch=4"]
    assert after.command() == [*words, pool, "device=cpu", "seed=0"]


def test_a_second_stage_inherits_the_network_and_not_the_algorithm() -> None:
    runs = {run.arms: run for run in tiny("then.steps=7").runs}
    found = runs["no tau", "selmix"].settings
    assert found["model.name"] == "cnn-2" and found["selmix.steps"] == "7"
    assert not any(key.startswith(("supervised.", "algo.", "then.")) for key in found)
    assert runs["no tau",].settings["supervised.steps"] == "2"
    assert ("no tau", "crt") not in runs


def test_what_second_stages_are_told_of_steps_is_not_for_one_without() -> None:
    text = TINY.replace("  selmix:\n", "  selmix:\n  posthoc:\n")
    for run in Sweep(parse(text, "x.yaml")).runs:
        own = {key for key in run.settings if key.startswith(run.algo)}
        assert own >= {f"{run.algo}.steps"} or (run.algo == "posthoc" and not own)
    Path("tiny.yaml").write_text(text.replace("  crt: {after: supervised}\n", ""))
    found = tiny("then.steps=7", "then.objective=g_mean").runs
    plans = [run.settings for run in found if run.algo == "posthoc"]
    assert [one["posthoc.objective"] for one in plans] == 4 * ["g_mean"]
    assert not any("posthoc.steps" in one for one in plans)


def test_a_stage_without_steps_begins_no_chain() -> None:
    with pytest.raises(ValueError, match="posthoc trains nothing and cannot come first"):
        Sweep(parse("algorithms: {posthoc: }", "x.yaml"))


def test_a_stage_between_two_networks_follows_a_second_stage() -> None:
    text = "algorithms: [fixmatch]\nthen: {selmix: , wise_ft: {after: selmix}}"
    found = Sweep(parse(text, "x.yaml")).runs[-1]
    assert found.arms == ("fixmatch", "selmix", "wise_ft") and found.base is not None
    for after in ("", "after: [selmix, fixmatch]"):
        words = text.replace("after: selmix", after)
        with pytest.raises(ValueError, match="wise_ft needs two networks, and fixmatch before"):
            Sweep(parse(words, "x.yaml"))


def test_second_stages_may_follow_each_other() -> None:
    text = (
        "algorithms: [fixmatch, abc]\nthen: {crt: {after: abc}, selmix: {after: [crt, fixmatch]}}"
    )
    sweep = Sweep(parse(text, "x.yaml"))
    assert [[run.arms for run in chain] for chain in sweep.chains] == [
        [("fixmatch",), ("fixmatch", "selmix")],
        [("abc",), ("abc", "crt"), ("abc", "crt", "selmix")],
    ]
    last = sweep.chains[1][2]
    assert last.base == Path("runs/x/digits/abc+crt/seed-0")
    assert last.folder == Path("runs/x/digits/abc+crt+selmix/seed-0")


def test_settings_that_confound_the_table_are_named_at_the_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["sweep", "digits", "--dry-run"]) == 0
    (first, second) = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith("note: settings of first stages that are not the same: confidence ")
    assert "; mu 2 (the others), 1 (remixmatch, " in first
    assert second.startswith("note: settings of second stages") and "lr 0.0003 (selmix" in second
    assert cli.main(["sweep", "trust", "--dry-run"]) == 0  # arms of one algorithm differ on purpose
    assert "not the same" not in capsys.readouterr().out


def test_presets_of_arms_come_before_that_of_all() -> None:
    text = "preset: cifar10-lt\ndataset: cifar10\nthen: [selmix]\nalgorithms:\n  fixmatch:\n"
    sweep = Sweep(parse(text + "  daso: {preset: cifar10-lt-daso}\n", "x.yaml"))
    presets = {run.arms: run.preset for run in sweep.runs}
    assert presets["daso", "selmix"] == presets["daso",] == "cifar10-lt-daso"
    assert presets["fixmatch", "selmix"] == "cifar10-lt"


@pytest.mark.parametrize(
    ("seeds", "found"), [("2", (2,)), ("0-2", (0, 1, 2)), ("[3, 1]", (3, 1)), ("7 - 7", (7,))]
)
def test_seeds(seeds: str, found: tuple[int, ...]) -> None:
    spec = parse(f"seeds: {seeds}\nalgorithms: [fixmatch]", "x.yaml")
    assert spec.seeds == {"digits": found}


def test_a_split_may_have_seeds_of_its_own() -> None:
    splits = "splits: {a: , b: {seeds: [4, 1], data.validation: 15}}"
    found = Sweep(parse(f"seeds: 0-1\n{splits}\nalgorithms: [fixmatch]", "x.yaml"))
    runs = [(run.split, run.seed) for run in found.runs]
    assert runs == [("a", 0), ("a", 1), ("b", 1), ("b", 4)]
    assert found.runs[2].settings == {"data.validation": "15"}


BASE = "algorithms: [fixmatch]\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("algorithms: [", ["no YAML"]),
        ("a: 1\na: 2", ["no YAML", "duplicate key a"]),
        ("3", ["a sweep must be a mapping"]),
        ("[fixmatch]", ["a sweep must be a mapping"]),
        ("seeds: 0", ["no algorithm", "algorithms: [fixmatch]"]),
        (BASE + "sed: 0", ["unknown key 'sed'", "seeds"]),
        (BASE + "seeds: [0, 0]", ["seeds must differ"]),
        (BASE + "seeds: -1", ["seeds must be whole numbers"]),
        (BASE + "seeds: 2-0", ["seeds must be whole numbers"]),
        (BASE + "seeds: true", ["seeds must be whole numbers"]),
        (BASE + "splits: {a: {seeds: x}}", ["seeds must be whole numbers"]),
        (BASE + "settings: {seed: 3}", ["seed=3 in settings", "seeds: [0, 1, 2]"]),
        (BASE + "settings: 3", ["settings must be a mapping"]),
        (BASE + "out: [a]", ["out must be a text"]),
        ("algorithms: [fixmach]", ["arm 'fixmach'", "unknown algorithm", "fixmatch"]),
        ("algorithms: [fixmatch, fixmatch]", ["algorithms must differ"]),
        ("algorithms: {fixmatch: {after: abc}}", ["unknown key 'after'", "arm 'fixmatch'"]),
        ("algorithms: {fixmatch: {setings: }}", ["unknown key 'setings'", "settings"]),
        ("algorithms: {a b: {algo: abc}, a-B: {algo: abc}}", ["'a b' and 'a-B' need one folder"]),
        ("algorithms: {+: {algo: abc}}", ["'+' has no letter"]),
        (BASE + "then: {selmix: {after: abc}}", ["unknown arm 'abc'", "arm 'selmix'"]),
        (BASE + "then: {selmix: {after: crt}, crt: }", ["unknown arm 'crt'", "arm 'selmix'"]),
        (BASE + "then: {selmix: {after: []}}", ["after must list arms"]),
        (BASE + "then: [fixmatch]", ["'fixmatch' and 'fixmatch' need one folder"]),
        (BASE + "dataset: digit", ["unknown dataset 'digit'", "digits"]),
        (BASE + "preset: digts", ["unknown preset 'digts'"]),
        (BASE + "settings: {fixmatch.stps: 3}", ["fixmatch: unknown key", "fixmatch.steps"]),
        (BASE + "settings: {algo.stps: 3}", ["unknown key 'fixmatch.stps'"]),
        (BASE + "settings: {fixmatch.steps: 0}", ["fixmatch.steps must be", "not 0"]),
        (
            BASE + "settings: {fixmatch.lr: fast}",
            ["fixmatch.lr must be a decimal number", "'fast'"],
        ),
        (BASE + "settings: {daso.steps: 3}", ["daso.steps is set", "no run has the section daso"]),
        (BASE + "settings: {then.steps: 3}", ["no run has the section then"]),
        (BASE + "splits: {a: {selmix.lr: 3}}", ["no run has the section selmix"]),
        (BASE + "splits: {a: {data.rho: 3}}", ["x.yaml, a, fixmatch: unknown key 'data.rho'"]),
        ("algorithms: {abc: {settings: {then.steps: 3}}}", ["unknown key 'then.steps'"]),
        (BASE + "slurm: {time: [1]}", ["slurm.time=['1'] is no long option"]),
        (BASE + "slurm: {array: 0-3}", ["slurm.array is not for a sweep"]),
        (BASE + "slurm: {'a b': 3}", ["slurm.a b='3' is no long option"]),
        (BASE + "slurm: {requeue: false}", ["slurm.requeue='false' is no long option"]),
        ("- fixmatch", ["must be a mapping of names to values, not ['fixmatch']"]),
        ("\x00", ["this is no YAML"]),
    ],
    ids=lambda value: value.replace("\n", " ") if isinstance(value, str) else None,
)
def test_a_mistake_is_found_before_anything_runs(text: str, parts: list[str]) -> None:
    Path("x.yaml").write_text(text)
    with pytest.raises(ValueError) as caught:
        Sweep(read("x.yaml"))
    message = str(caught.value)
    assert "\n" not in message and message.startswith("x.yaml")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nothing.yaml"], ["no sweep file nothing.yaml"]),
        (["digts"], ["unknown sweep 'digts'", "digits"]),
        (["tiny.yaml", "algo.stps=3"], ["unknown key 'supervised.stps'"]),
        (["tiny.yaml", "daso.steps=3"], ["no run has the section daso"]),
        (["tiny.yaml", "seed=3"], ["seed=3 in the command line"]),
        (["tiny.yaml", "data.labeled.largest=9999"], ["tiny.yaml, same, supervised", "9999"]),
        (
            ["tiny.yaml", "selmix.objective=min_recal"],
            ["supervised + selmix", "nearest: min_recall"],
        ),
        (["tiny.yaml", "device=gpu"], ["device=gpu cannot be used", "device=cpu"]),
        (["tiny.yaml", "--only", "4"], ["--only must be 0 to 3", "not 4"]),
        (["tiny.yaml", "--jobs", "0"], ["0 is not at least 1"]),
        (["tiny.yaml", "--jobs", "x"], ["'x' is no whole number"]),
        (["tiny.yaml", "--engine", "ray", "--jobs", "2"], ["leave out --jobs"]),
        (["tiny.yaml", "--slurm", "tiny.yaml"], ["tiny.yaml exists and is no script"]),
        (["tiny.yaml", "--slurm", "no/array.sh"], ["no folder no; create it"]),
        (["tiny.yaml", "--out", "tiny.yaml/o"], ["tiny.yaml/o cannot be a folder", "is a file"]),
        ([], ["required: SPEC;", "ssl-selmix sweep --help"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_on_the_command_line_is_one_line(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["sweep", *words])
    except SystemExit as exit:
        code = int(str(exit.code))
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    assert not list(Path().glob("out/*/*"))
    for part in parts:
        assert part in lines[0]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom ssl_selmix import cli\ntry:\n    cli.main(['sweep', '--help'])\n"
    code += "finally:\n    print(sorted({'torch', 'numpy', 'yaml', 'rich'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "[]"


@dataclass
class Kinds:
    """A field of every kind."""

    text: str = ""
    texts: list[str] = field(default_factory=list)
    whole: int = 0
    number: float = 0.0
    numbers: list[float] = field(default_factory=list)
    truth: bool = False
    perhaps: int | None = 3


TEXT = st.text(max_size=9).filter(lambda text: "\0" not in text)
WHOLE, NUMBER = st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(TEXT, st.lists(TEXT, max_size=3), WHOLE, NUMBER, st.lists(NUMBER, max_size=3))
@example("1e3", ["a: b", "c, d", "null", "#"], 10, 1e-300, [])
@example("\x1f\x7fĀ𐀀" + "0 " * 99, ["\x1f\x7fĀ𐀀" + "0 " * 99, ""], 7, 1e300, [-0.0])
@example("${seed}", ["${oc.env:HOME}", "\udce9", "\n"], 0, 0.5, [1e22])
def test_a_value_survives_the_command_line(
    text: str, texts: list[str], whole: int, number: float, numbers: list[float]
) -> None:
    kept = Kinds(text, texts, whole, number, numbers, True, None)
    words = [word(f"x.{name}", value) for name, value in vars(kept).items()]
    found, _ = config.compose({"x": Kinds}, [("words", config.parse_overrides(words))])
    assert repr(found["x"]) == repr(kept)


@given(st.text(min_size=1))
def test_a_folder_name_stays_in_its_folder(name: str) -> None:
    found = slug(name)
    assert "/" not in found and "+" not in found and found not in (".", "..")
    assert slug(found) == found


# --- Runs in this process, which are real ones ---------------------------------------------------


class Here(Children):
    """Trains in this process: no start-up, and a list of what was asked for."""

    asked: list[str]

    def run(
        self, words: Sequence[str], log: IO[bytes], env: Mapping[str, str], lock: int | None
    ) -> int | None:
        assert tuple(words[:4]) == processes.TRAIN
        Here.asked.append(words[words.index("--out") + 1])
        with redirect_stdout(StringIO()) as text:
            code = cli.main(words[4:])
        log.write(text.getvalue().encode())
        return code


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(processes, "Children", Here)
    monkeypatch.setattr(forks, "possible", lambda: False)
    Here.asked = []
    return Here.asked


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A folder with the whole sweep in it, the runs in the order of their start, and the output."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch, (folder / "said").open("w") as file:
        patch.chdir(folder)
        patch.setattr(processes, "Children", Here)
        patch.setattr(forks, "possible", lambda: False)
        Here.asked = []
        Path("tiny.yaml").write_text(TINY)
        with redirect_stdout(file):
            assert cli.main(["sweep", "tiny.yaml", "--jobs", "1"]) == 0
    return folder, list(Here.asked), (folder / "said").read_text()


@pytest.fixture
def again(swept: tuple[Path, list[str], str], tmp_path: Path, here: list[str]) -> list[str]:
    """A copy of that folder to go on in, and what is started there."""
    shutil.copytree(swept[0] / "out", tmp_path / "out")
    return here


def states(*words: str) -> dict[str, str]:
    found = tiny(*words).standings
    return {str(folder): state for folder, (state, _) in found.items()}


@pytest.mark.slow
def test_every_run_is_started_once_after_its_base(swept: tuple[Path, list[str], str]) -> None:
    folder, asked, said = swept
    runs = tiny().runs
    assert asked == [str(run.folder) for run in runs] and len(asked) == 10
    lines = said.splitlines()
    assert lines[0] == "out: 10 of 10 runs are left" and lines[-1] == "10 finished"
    ended = [line for line in lines if line.startswith("[")]
    assert len(ended) == 10
    assert ended[0].startswith(f"[ 1/10] {FIRST}: finished in ") and "mean recall" in ended[0]
    for run in runs:
        first, *rest = (folder / run.folder / "log.txt").read_text().splitlines()
        # A second stage takes over the number format that the machine chose for the first.
        chosen = ["precision=fp32"] if run.base else []
        assert shlex.split(first)[1:] == ["ssl-selmix", *run.command(), *chosen]
        assert rest[-1] == f"results: {run.folder / 'results.json'}"


def test_second_stages_start_from_the_weights_of_their_base(
    swept: tuple[Path, list[str], str],
) -> None:
    folder = swept[0]
    for run in tiny().runs:
        if run.base is not None:
            base, found = (
                json.loads((folder / place / "results.json").read_text())
                for place in (run.base, run.folder)
            )
            for part in ("validation", "test"):
                start, end = found["start"][part], base["stages"][-1][part]
                assert start["per_class_recall"] == end["per_class_recall"]
                assert start["ece"] == pytest.approx(end["ece"], rel=1e-6)
            assert found["manifest_sha256"] == base["manifest_sha256"]
            written = load_yaml(folder / run.folder / "config.yaml")
            assert written["init"]["path"] == str(run.base)


def test_what_is_finished_is_not_run_again(
    again: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", "tiny.yaml"]) == 0
    assert again == []
    assert capsys.readouterr().out == "out: 0 of 10 runs are left\n"


@pytest.mark.slow
def test_only_what_is_missing_is_run(again: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(AFTER)
    Path("tiny.yaml").write_text(TINY.replace("[0, 1]", "[0, 2]"))  # another seed: other runs
    assert cli.main(["sweep", "tiny.yaml", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"   0  missing    {AFTER}" in lines and f"   0  finished   {FIRST}" in lines
    assert lines[-2] == "10 runs in 4 chains: 4 finished, 6 missing"
    assert lines[-1].startswith("note: not of this sweep: out/same/no-tau") and again == []
    assert lines[-1].endswith(" and 2 more")
    assert cli.main(["sweep", "tiny.yaml", "--only", "0"]) == 0
    assert cli.main(["sweep", "tiny.yaml", "--only", "same/supervised/seed-0", "--dry-run"]) == 0
    assert again == [str(AFTER)]


@pytest.mark.slow
def test_a_run_that_was_cut_is_resumed(again: list[str]) -> None:
    """Its stage ended, and it was killed before its results were written."""
    expected = json.loads((AFTER / "results.json").read_text())
    kept = (AFTER / "1-selmix" / "last.pt").read_bytes()
    (AFTER / "results.json").unlink()
    assert states()[str(AFTER)] == RESUMABLE
    assert cli.main(["sweep", "tiny.yaml"]) == 0
    assert again == [str(AFTER)] and (AFTER / "1-selmix" / "last.pt").read_bytes() == kept
    found = json.loads((AFTER / "results.json").read_text())
    for result in (found, expected):
        result["start"].pop("seconds"), result["stages"][0].pop("seconds")
        result.pop("sha256")
    assert found == expected


def test_runs_of_other_settings_are_named_and_not_mixed(
    again: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(AFTER)
    assert cli.main(["sweep", "tiny.yaml", "crt.lr=0.5"]) == 2
    error = capsys.readouterr().err
    assert "same/supervised+crt/seed-0: crt.lr: " in error and "-> 0.5" in error
    assert "seed-1" in error and "another --out" in error and again == []
    found = states("crt.lr=0.5")
    assert [found[str(f)] for f in (FIRST, AFTER)] == [FINISHED, MISSING]
    assert list(found.values()).count(CHANGED) == 2
    assert set(states("threads=2").values()) == {FINISHED, MISSING}  # decides no result


@pytest.mark.slow
def test_a_second_stage_of_other_weights_is_named(again: list[str]) -> None:
    shutil.rmtree(FIRST)
    assert [states()[str(f)] for f in (FIRST, AFTER)] == [MISSING, FINISHED]
    shutil.copytree("out/same/supervised/seed-1", FIRST)  # stands for other weights
    (unbound(FIRST) / "config.yaml").write_text(
        (FIRST / "config.yaml").read_text().replace("seed: 1", "seed: 0")
    )
    results = json.loads((FIRST / "results.json").read_text())
    (FIRST / "results.json").write_text(json.dumps(results | {"seed": 0}))
    state, detail = tiny().standings[AFTER]
    assert state == CHANGED and detail.startswith("init.sha256: ")
    for part in FIRST.glob("*/*.pt"):
        part.unlink()  # to save space: nothing can be said about the weights any more
    assert states()[str(AFTER)] == FINISHED


def test_damaged_files_are_not_taken_for_results(again: list[str]) -> None:
    (FIRST / "results.json").write_text("{")
    (AFTER / "config.yaml").write_text("seed: [1")
    found = tiny().standings
    assert found[FIRST][0] == RESUMABLE and found[AFTER] == (CHANGED, "config.yaml is damaged")


@pytest.mark.usefixtures("again")
def test_the_number_format_that_a_machine_chose_is_no_change() -> None:
    written = (unbound(FIRST) / "config.yaml").read_text()
    now = load_yaml(FIRST / "config.yaml")["precision"]
    other = "bf16" if now == "fp32" else "fp32"
    (FIRST / "config.yaml").write_text(written.replace(f"precision: {now}", f"precision: {other}"))
    assert tiny("precision=auto").standings[FIRST] == (FINISHED, "")
    assert states(f"precision={now}")[str(FIRST)] == CHANGED


# --- Processes, of a stand-in for training that starts at once -----------------------------------

ENDED = results([stage("fixmatch", [0.75, 0.25])])
STUB = """
import json, os, pathlib, subprocess, sys, time
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--out") + 1])
algo = words[words.index("--algo") + 1]
print("out:", out, "gpu:", os.environ.get("CUDA_VISIBLE_DEVICES"))
plan = json.loads(pathlib.Path("plan.json").read_text()).get(str(out), "")
if plan == "fail":
    print("half a table")
    sys.exit("error: no such luck")
if plan == "die":
    os.kill(os.getpid(), 9)
if plan == "hang":
    worker = subprocess.Popen(["sleep", "60"])
    partial = out / "pids"
    partial.write_text(f"{os.getpid()} {worker.pid}")
    partial.rename(out / "hangs")
    time.sleep(60)
(out / "results.json").write_text(RESULTS)
"""


# A fork server that imports nothing, and whose forks are the stand-in.
SERVER = """
import runpy, sys
from ssl_selmix.sweep import forkserver
forkserver.prepare = lambda: None
forkserver.keep = lambda *data: None
runpy.run_module = lambda *args, **how: runpy.run_path("stub.py", run_name="__main__")
forkserver.main(int(sys.argv[1]))
"""


@pytest.fixture(params=["processes", "forks"])
def stub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says which run fails, dies or hangs; started in one way and the other."""
    (tmp_path / "stub.py").write_text(f"RESULTS = {json.dumps(ENDED)!r}\n{STUB}")
    if request.param == "forks":
        monkeypatch.setattr(forks, "SERVER", (sys.executable, "-u", "-c", SERVER))
    else:
        program = (sys.executable, "-u", "-I", str(tmp_path / "stub.py"))
        monkeypatch.setattr(processes, "TRAIN", program)
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    return plan


def gone(pid: int) -> bool:
    """Whether a process ended (or is a zombie, which is as good)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(path: Path) -> list[int]:
    """The process and its worker, once they hang."""
    for _ in range(600):
        if path.exists():
            return [int(pid) for pid in path.read_text().split()]
        time.sleep(0.05)
    raise AssertionError(f"no {path}")


def test_a_failure_costs_only_what_starts_from_it(
    stub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    died = Path("out/same/no-tau+selmix/seed-1")
    stub.write_text(json.dumps({str(FIRST): "fail", str(died): "die"}))
    assert cli.main(["sweep", "tiny.yaml", "--jobs", "3"]) == 1
    lines = capsys.readouterr().out.splitlines()
    told = [line.partition("] ")[2] for line in lines if line.startswith("[")]
    ended = {run: said for run, _, said in (line.partition(": ") for line in told)}
    assert len(ended) == 10
    assert ended[str(FIRST)].endswith("error: no such luck")
    assert ended[str(AFTER)] == f"blocked; starts from {FIRST}"
    assert ended[str(died)].endswith(f"ended by SIGKILL after: out: {died} gpu: None")
    assert "6 finished" in lines[-4] and "2 failed" in lines[-4] and "2 blocked" in lines[-4]
    failed = f"failed: {FIRST / 'log.txt'} ends with: error: no such luck"
    assert failed in lines[-3:] and lines[-1] == "the same command runs what is left"


@pytest.mark.slow
def test_ctrl_c_ends_the_children_and_theirs(
    stub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.write_text(json.dumps({str(FIRST): "hang"}))
    pids: list[int] = []

    def end() -> None:
        pids.extend(wait_for(FIRST / "hangs"))
        os.kill(os.getpid(), signal.SIGTERM)  # as a cluster does; Ctrl-C takes the same way

    thread = threading.Thread(target=end)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    assert cli.main(["sweep", "tiny.yaml", "--jobs", "2"]) == 130
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(pids) == 2 and all(map(gone, pids))
    assert capsys.readouterr().err == "error: interrupted; the same command goes on\n"
    stub.write_text("{}")
    assert cli.main(["sweep", "tiny.yaml", "--jobs", "2"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("stub", ["forks"], indirect=True)
def test_the_fork_server_is_started_anew_when_it_dies(
    stub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.write_text(json.dumps({str(FIRST): "hang"}))
    pids: list[int] = []

    def kill() -> None:
        pids.extend(wait_for(FIRST / "hangs"))
        server = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(server, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    assert cli.main(["sweep", "tiny.yaml", "--jobs", "1"]) == 1
    thread.join()
    assert len(pids) == 2 and all(map(gone, pids))
    out = capsys.readouterr().out
    assert "1 failed, 2 blocked, 7 finished" in out
    told = "perhaps for want of memory (lower --jobs): the process that starts the runs was ended"
    assert f"{FIRST / 'log.txt'} ends with: {told} by SIGKILL" in out


def test_a_second_sweep_in_the_folder_is_refused(
    stub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(Path("out/.lock"), "sweeps out"):
        assert cli.main(["sweep", "tiny.yaml"]) == 2
    error = capsys.readouterr().err
    assert f"process {os.getpid()} on " in error and "sweeps out; wait for it" in error
    with locked(FIRST / ".lock", f"works in {FIRST}"):
        assert cli.main(["sweep", "tiny.yaml"]) == 1
    out = capsys.readouterr().out
    assert out.count(": busy; process ") == 3 and "7 finished" in out


ORPHAN = """
import json, sys
from pathlib import Path
from ssl_selmix.sweep import forks, processes
from ssl_selmix.sweep.spec import read
from ssl_selmix.sweep.runs import Sweep
processes.TRAIN, forks.SERVER = map(tuple, json.loads(sys.argv[1]))
run = Sweep(read("tiny.yaml")).runs[0]
processes.by_processes([processes.Job(run.folder, (run,))], [{}], print, forks.Forks)
"""


@pytest.mark.slow
def test_a_killed_sweep_leaves_a_lock_as_long_as_its_children_live(stub: Path) -> None:
    stub.write_text(json.dumps({str(FIRST): "hang"}))
    words = [sys.executable, "-c", ORPHAN, json.dumps([processes.TRAIN, forks.SERVER])]
    sweep = subprocess.Popen(words)
    pids = wait_for(FIRST / "hangs")
    sweep.kill()
    sweep.wait()
    with pytest.raises(Busy, match=f"process {sweep.pid} on"):
        with locked(FIRST / ".lock", "works"):
            pass
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    while not all(map(gone, pids)):
        time.sleep(0.01)
    with locked(FIRST / ".lock", "works"):
        pass


def test_a_chain_that_cannot_be_locked_fails_alone(
    stub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (FIRST / ".lock").mkdir(parents=True)  # as a disk that is full, or another user's folder
    assert cli.main(["sweep", "tiny.yaml"]) == 1
    out = capsys.readouterr().out
    assert out.count(f"Is a directory ({FIRST / '.lock'})") >= 3 and "7 finished" in out


def test_places_share_gpus_and_cores(stub: Path) -> None:
    assert processes.places(3, 0, ["4", "7"], 8) == [
        {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "2"} for gpu in ("4", "7", "4")
    ]
    assert processes.places(2, 1, [], 8) == [{}, {}]
    assert processes.default_jobs({"auto"}, 1, [], 8) == 8
    assert processes.default_jobs({"cpu"}, 3, [], 8) == 2
    assert processes.default_jobs({"auto"}, 0, [], 8) == 1  # each takes the whole machine
    assert processes.default_jobs({"auto"}, 1, ["0", "1"], 8) == 2
    assert processes.default_jobs({"cuda:1"}, 1, [], 8) == 1
    jobs = [Job(chain[0].folder, tuple(chain)) for chain in tiny().chains]
    told: list[Outcome] = []
    places = processes.places(2, 1, ["4", "7"], 2)
    found = processes.by_processes(jobs, places, told.append, forks.Forks)
    assert len(found) == len(told) == 10 and {o.state for o in found} == {FINISHED}
    logs = [(run.folder / "log.txt").read_text() for run in tiny().runs]
    assert {text.split()[-1] for text in logs} == {"4", "7"}


# --- Clusters ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("again")
def test_a_job_array_has_a_task_per_chain_with_runs_left(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = TINY + "slurm: {partition: long, time: '12:00:00', cpus-per-task: 3, comment: 'a b'}\n"
    Path("my tiny.yaml").write_text(spec)
    words = ["sweep", "my tiny.yaml", "--slurm", "array.sh"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == "all 10 runs are finished; no script is needed\n"
    assert not Path("array.sh").exists()
    Path("out").rename("o ut")
    words += ["--out", "o ut", "device=cpu", "--jobs", "2"]
    for path in (AFTER, FIRST.with_name("seed-1"), Path("out/same/no-tau/seed-1")):
        shutil.rmtree(Path("o ut", *path.parts[1:]))
    for _ in range(2):  # its own file may be written again
        assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("array.sh: 3 tasks")
    lines = Path("array.sh").read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    options = dict(line[10:].split("=", 1) for line in lines if line.startswith("#SBATCH --"))
    assert options.pop("output") == shlex.quote(f"{tmp_path}/o ut/slurm-%A_%a.txt")
    assert options == {
        **{"job-name": "my-tiny", "partition": "long", "time": "12:00:00"},
        **{"cpus-per-task": "3", "array": "0,2-3%2", "comment": "'a b'"},
    }
    assert shlex.split(lines[-1])[-7:] == [
        *("sweep", "my tiny.yaml", "--out", "o ut", "device=cpu"),
        *("--only", "${chains[$SLURM_ARRAY_TASK_ID]}"),
    ]
    named = [line.strip() for line in lines if line.startswith("  [")]
    assert named[0] == "[0]=same/supervised/seed-0" and len(named) == 3
    assert subprocess.run(["bash", "-n", "array.sh"]).returncode == 0


@pytest.mark.slow
def test_a_task_of_the_array_runs_its_chain(tmp_path: Path) -> None:
    """The script itself, as a node would execute it: real processes, real training."""
    Path("one.yaml").write_text(TINY.partition("then:\n  selmix")[0].replace("\n  then: ", "\n #"))
    assert cli.main(["sweep", "one.yaml", "--slurm", "array.sh"]) == 0
    env = os.environ | {"SLURM_ARRAY_TASK_ID": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", str(tmp_path / "array.sh")], env=env, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 finished"
    found = Sweep(read("one.yaml")).standings
    assert [state for state, _ in found.values()] == [FINISHED, MISSING, MISSING, MISSING]


@pytest.fixture
def ray() -> Iterator[None]:
    pytest.importorskip("ray.exceptions", reason="Ray, the optional extra, is not installed")
    yield


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_runs_the_same_chains(tmp_path: Path) -> None:
    """On this machine, which is Ray's local cluster; in a process, for Ray changes its own."""
    text = TINY.partition("  crt:")[0].replace("[0, 1]", "0").replace("  no tau", "  #")
    Path("tiny.yaml").write_text(text)
    words = [sys.executable, "-m", "ssl_selmix.cli", "sweep", "tiny.yaml", "--engine", "ray"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "2 finished"
    assert set(states().values()) == {FINISHED} and len(states()) == 2


def test_ray_is_named_when_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["sweep", "tiny.yaml", "--engine", "ray"]) == 2
    assert "pip install 'ssl_selmix[ray]'" in capsys.readouterr().err


def test_ranges() -> None:
    assert cluster.ranges([3]) == "3" and cluster.ranges([0, 2, 3, 4, 9]) == "0,2-4,9"


def test_a_closed_terminal_under_nohup_is_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with processes.ended_like_interrupted():
            os.kill(os.getpid(), signal.SIGHUP)  # would raise KeyboardInterrupt
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
