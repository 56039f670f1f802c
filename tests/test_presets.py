"""Every preset builds its run without an image, and says what the paper's settings are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_selmix.algorithm import Task, load
from ssl_selmix.algorithms import selmix
from ssl_selmix.common import config, plugins
from ssl_selmix.compare.protocol import CONDITIONS
from ssl_selmix.runs.plan import Plan, Request

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "golden" / "dataset_counts.json").read_text()
)
PAPER = {
    "cifar10-lt": "cifar10_N1-1500_M1-3000_rl-100_ru-100",
    "cifar10-lt-uniform": "cifar10_N1-1500_M1-3000_rl-100_ru-1",
    "cifar10-lt-inverted": "cifar10_N1-1500_M1-30_rl-100_ru-0.01",
    "cifar100-lt": "cifar100_N1-150_M1-300_rl-10_ru-10",
    "stl10-lt": "stl10_N1-450_rl-10",
}


PROTOCOLS = {
    "P-ACR": ("cifar10-lt-acr", "cifar100-lt-acr"),
    "P-CDMAD": ("cifar10-lt-cdmad", "cifar100-lt-cdmad", "cifar10-lt-remixmatch-cdmad"),
    "P-SimPro": ("cifar10-lt-simpro", "cifar100-lt-simpro"),
    "P-IN127": ("small_imagenet127-fixmatch", "small_imagenet127-simpro"),
}
LISTED = ("food101-fixmatch", "imagenet_lt-supervised")


def algorithms_of(preset: str) -> list[str]:
    """The algorithms that a preset has a section about; of none, any."""
    sections = {key.partition(".")[0] for key in config.parse_yaml(plugins.preset_text(preset), "")}
    return sorted(sections & plugins.available("algorithm").keys()) or ["fixmatch"]


def dataset_of(preset: str) -> str:
    """The data set that a preset is named after; any, of those about networks."""
    name = preset.partition("-")[0]
    return "digits" if name == "pretrained" else name


def plan_of(preset: str, *settings: str) -> Plan:
    names = algorithms_of(preset)
    return Plan(Request(names, dataset=dataset_of(preset), preset=preset, settings=settings))


def commands(preset: str) -> list[list[str]]:
    """The settings of the objectives that a preset's header names."""
    lines = plugins.preset_text(preset).splitlines()
    return [line.strip("# ").split() for line in lines if line.startswith("#   selmix.objective=")]


@pytest.mark.parametrize("preset", plugins.presets())
def test_a_preset_builds_its_run_without_data(preset: str) -> None:
    plan = plan_of(preset)
    written = dict(plan.layers)[f"preset {preset}"]
    text = config.parse_yaml(plugins.preset_text(preset), preset)
    # Of a method that is another stage when it is not the first, nothing is taken then.
    methods = set(algorithms_of(preset)[1:])
    later = {name for name in methods if load(name)[1].after}
    first = {key for key in text if key.partition(".")[0] in later}
    assert written.keys() | first == text.keys() - {"dataset"}
    for name in later:
        alone = dict(Plan(Request([name], preset=preset)).layers)[f"preset {preset}"]
        assert {key for key in first if key.startswith(f"{name}.")} <= alone.keys()
    if not preset.startswith("pretrained"):
        assert str(text["dataset"]) == dataset_of(preset) == plugins.preset_dataset(preset)
    composed = config.flatten(plan.plain)
    assert {key: composed[key] for key in written} == written


@pytest.mark.parametrize("preset", PAPER)
def test_every_objective_of_a_header_can_be_built(preset: str) -> None:
    num_classes = 100 if preset == "cifar100-lt" else 10
    task = Task(tuple(map(str, range(num_classes))), torch.ones(num_classes).double(), 1, 1)
    assert commands(preset)
    for settings in [[], *commands(preset)]:
        plan = plan_of(preset, *settings)
        built = plan.config["selmix"]
        assert isinstance(built, selmix.SelMix.Config)
        built.build_objective(task.num_classes, task.tail)


@pytest.mark.parametrize("preset", PAPER)
def test_the_counts_are_the_published_ones(preset: str) -> None:
    golden = GOLDEN[PAPER[preset]]
    split = plan_of(preset).config["data"]
    counts = split.counts(100 if preset == "cifar100-lt" else 10)
    if preset == "stl10-lt":
        assert counts["labeled"] == golden["labeled"]
        assert counts["unlabeled"] == [0] * 10 and set(golden["unlabeled_label_values"]) == {-1}
        assert golden["val_is_subset_of_labeled"]  # the mistake that is not repeated here
        return
    published = golden["exclude_labeled"]
    assert counts["labeled"] == published["labeled"]
    assert counts["unlabeled"] == published["unlabeled"]
    # There, the mirror images are counted too.
    assert sum(counts["validation"]) == published["n_val_unique"]
    split.labeled_in_pool = True
    assert (
        split.counts(len(counts["labeled"]))["unlabeled"]
        == (golden["include_labeled"]["unlabeled"])
    )


@pytest.mark.parametrize("preset", PAPER)
def test_the_published_schedule(preset: str) -> None:
    plan = plan_of(preset)
    fixmatch, mixed = plan.config["fixmatch"], plan.config["selmix"]
    assert (fixmatch.steps, fixmatch.lr, fixmatch.batch, fixmatch.mu) == (2**20, 0.03, 64, 2)
    assert (fixmatch.ema, fixmatch.ema_warmup) == (0.999, "none")
    assert (mixed.steps, mixed.lr, mixed.step, mixed.schedule) == (10_000, 3e-4, "fixed", "cosine")
    assert (plan.config["model"].name, plan.config["model"].bn_momentum) == ("wrn-28-2", 0.001)


def test_presets_of_the_paper_differ_in_their_data_and_in_what_the_paper_tuned() -> None:
    """Five files repeat the same lines; none of them may be forgotten in an edit."""
    settings = {p: config.parse_yaml(plugins.preset_text(p), p) for p in PAPER}
    common = {k: v for k, v in settings["cifar10-lt"].items() if not k.startswith("data")}
    tuned: dict[str, dict[str, Any]] = {
        "cifar10-lt": {},
        "cifar10-lt-uniform": {},
        "cifar10-lt-inverted": {"selmix.temperature": "0.05"},
        "cifar100-lt": {"selmix.temperature": "0.05", "selmix.objective": "min_ht_recall"},
        "stl10-lt": {},
    }
    for preset, values in settings.items():
        others = {k: v for k, v in values.items() if not k.startswith("data")}
        assert others == common | tuned[preset]


def test_every_line_of_a_preset_of_the_paper_cites_its_source() -> None:
    for preset in PAPER:
        for line in plugins.preset_text(preset).splitlines():
            key, _, value = line.partition(": ")
            if not line.startswith("#") and value and not value.startswith("#"):
                assert "  # " in line, f"{preset}: {key.strip()}"


@pytest.mark.parametrize("preset", [*LISTED, *(p for ps in PROTOCOLS.values() for p in ps)])
def test_every_line_of_a_protocol_cites_its_source(preset: str) -> None:
    text = plugins.preset_text(preset)
    for line in text.splitlines():
        key, _, value = line.partition(": ")
        if not line.startswith("#") and value and not value.startswith("#"):
            assert "  # " in line, key.strip()
    named = [name for name, presets in PROTOCOLS.items() if preset in presets]
    assert all(f"protocol {name}" in text.splitlines()[0] for name in named)
    command = re.search(r"#   python train\.py (.*)", text)
    assert command and f"--preset {preset} " in command[1]
    assert algorithms_of(preset)[0] in command[1].split()


def kept_apart_by(preset: str) -> dict[str, Any]:
    """What `compare` makes tables by, or refuses to mix."""
    plan = plan_of(preset)
    (stage,) = (plan.config[name] for name in algorithms_of(preset))
    split = config.flatten({"data": plan.plain["data"]})
    keys = {k: v for k, v in split.items() if k.startswith((*CONDITIONS, "data.validation"))}
    return keys | {"steps": stage.steps, "dataset": plan.request.dataset}


def test_compare_keeps_protocols_apart() -> None:
    """Presets of one protocol and data set share images and steps, those of two never do."""
    presets = [(name, preset) for name, found in PROTOCOLS.items() for preset in found]
    for name, one in presets:
        for other_name, other in presets:
            if name != other_name:
                assert kept_apart_by(one) != kept_apart_by(other), (one, other)
    assert kept_apart_by(PROTOCOLS["P-IN127"][0]) == kept_apart_by(PROTOCOLS["P-IN127"][1])


def test_counts_of_protocols() -> None:
    def counts(preset: str, *settings: str) -> dict[str, list[int]]:
        split = plan_of(preset, *settings).config["data"]
        found: dict[str, list[int]] = split.counts(100 if "cifar100" in preset else 10)
        return found

    acr = counts("cifar10-lt-acr")
    assert acr["labeled"] == [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]
    assert acr["unlabeled"][0] == 4500 and acr["unlabeled"][-1] == 45  # labeled ones are in it
    apart = counts("cifar10-lt-acr", "data.labeled_in_pool=false")["unlabeled"]
    reversed_ = counts("cifar10-lt-acr", "data.unlabeled.shape=inverted")
    own = [m - n for m, n in zip(reversed_["unlabeled"], acr["labeled"], strict=True)]
    assert own == apart[::-1]
    assert counts("cifar10-lt-simpro")["unlabeled"] == apart
    assert counts("cifar100-lt-acr")["labeled"][::99] == [50, 5]
    assert counts("cifar10-lt-cdmad")["labeled"] == counts("cifar10-lt")["labeled"]
    for gamma in (50, 150):
        rho = [f"data.labeled.rho={gamma}", f"data.unlabeled.rho={gamma}"]
        assert counts("cifar10-lt-cdmad", *rho)["labeled"][-1] == 1500 // gamma


def test_a_preset_is_not_taken_unasked_for_a_data_set_of_another_name() -> None:
    """2^20 steps are nothing to be started by `--dataset cifar10` alone."""
    assert not PAPER.keys() & plugins.available("dataset").keys()
    plan = Plan(Request(["fixmatch"], dataset="cifar10"))
    assert [origin for origin, _ in plan.layers] == ["command line"]


@pytest.mark.parametrize(
    ("preset", "tune", "optimizer", "decay"),
    [("pretrained-vit", "adapter", "sgd", 1.0), ("pretrained-convnext", "full", "adamw", 0.8)],
)
def test_recipes_of_pre_trained_networks(
    preset: str, tune: str, optimizer: str, decay: float
) -> None:
    plan = plan_of(preset)
    model, supervised = plan.config["model"], plan.config["supervised"]
    assert (model.tune, model.layer_decay, supervised.optimizer) == (tune, decay, optimizer)
    assert model.pretrained == "true" and (model.size, model.interpolation) == (224, "bicubic")
    assert not [key for key in dict(plan.layers)[f"preset {preset}"] if key.startswith("data.")]
    cited = [
        line for line in plugins.preset_text(preset).splitlines() if re.search(r"# .*\[", line)
    ]
    assert len(cited) >= 9
