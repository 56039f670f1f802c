"""`ssl-selmix init`: from a look at the images and five answers to a YAML file with comments."""

from __future__ import annotations

import glob
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import median

from ssl_selmix.audit.findings import counts
from ssl_selmix.audit.inventory import Inventory, take
from ssl_selmix.common import plugins
from ssl_selmix.common.names import unknown
from ssl_selmix.common.paths import expanded
from ssl_selmix.data import kinds
from ssl_selmix.splits import FOLDER, HeldOut

GROUPS = ("patient", "patient_id", "subject", "subject_id", "case", "case_id", "camera", "scene")
OPENED = 16  # images whose pixels are looked at
HELD = "0.2"  # of each class, for validation and for test images where there are none
PLACES = {"table": "file", "arrays": "file", "hf": "root", "webdataset": "shards"}
IN_MEMORY = 64  # pixels a side up to which images are decoded once

# The answers: the word, what it means, and what it sets.
GOALS = {
    "every": ("every class counts: the harmonic mean of the class recalls", "h_mean"),
    "worst": ("the worst class counts: its recall", "min_recall"),
    "mean": ("the mean over classes counts: mean recall", "mean_recall"),
}
NETWORKS = {
    "small": "a small network, trained from scratch; nothing is fetched",
    "pretrained": "a network that knows photographs (by timm, fetched once); only a classifier "
    "is trained",
}
TIMES = {"try": "minutes, to see that all works", "normal": "", "long": "as long as papers train"}
USES = {"pool": "labeled and unlabeled images", "labels": "the labeled images alone"}
STEPS = {  # of the first and of the second stage, on a CPU and on a GPU
    "try": {"cpu": (200, 50), "cuda": (500, 100)},
    "normal": {"cpu": (1300, 200), "cuda": (10_000, 500)},
    "long": {"cpu": (10_000, 500), "cuda": (50_000, 500)},
}


@dataclass(frozen=True)
class Look:
    """What there is, before any question.

    Attributes:
        dataset: the plug-in that reads it.
        key: the setting that says where it is; "" of a data set that knows.
        place: an absolute path, or "".
        counts: images of each part and class.
        side: pixels of the longer side of a usual image.
        group: a column of a table that may name patients or the like.
        device: cpu or cuda.
        shards: of tar shards, the settings that name those of each part; `place` is their folder.
    """

    dataset: str
    key: str
    place: str
    counts: Mapping[str, Mapping[str, int]]
    side: int
    group: str = ""
    device: str = "cpu"
    shards: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str | list[str]]:
        """Those of the data set that say where the images are."""
        return {**self.shards} if self.shards else {self.key: self.place} if self.key else {}

    @property
    def labeled(self) -> dict[str, int]:
        """Images of each class to train on."""
        return {name: num for name, num in self.counts["train"].items() if name}

    @property
    def unlabeled(self) -> int:
        """Images without a class."""
        return sum(self.counts.get("unlabeled", {}).values())

    def told(self) -> str:
        """What was found, in a line."""
        largest, smallest = (f(self.labeled, key=self.labeled.__getitem__) for f in (max, min))
        sizes = f"from {self.labeled[largest]} ({largest}) to {self.labeled[smallest]} ({smallest})"
        others = [
            f"{sum(v.values())} for {part}"
            for part, v in self.counts.items()
            if part in ("validation", "test")
        ]
        others += [f"{self.unlabeled} without a label"] if self.unlabeled else []
        more = f"; {', '.join(others)}" if others else ""
        return (
            f"{sum(self.labeled.values())} labeled images in {len(self.labeled)} classes, {sizes}"
            f"{more}; about {self.side} pixels a side"
        )


@dataclass(frozen=True)
class Answers:
    """What the user wants; each word is one of the tables above, or as it says."""

    goal: str = "every"  # or a name of an objective
    network: str = "small"  # or a name for model.name
    time: str = "normal"
    use: str = "labels"

    def __post_init__(self) -> None:
        """Raise ValueError for a word that means nothing."""
        if self.goal not in GOALS and self.goal not in plugins.objectives():
            raise ValueError(unknown("goal", self.goal, [*GOALS, *plugins.objectives()]))
        for key, known in (("time", TIMES), ("use", USES)):
            if getattr(self, key) not in known:
                raise ValueError(unknown(key, getattr(self, key), known))
        if self.network not in NETWORKS and ":" not in self.network and "-" not in self.network:
            raise ValueError(
                f"unknown network {self.network!r}; write {' or '.join(NETWORKS)}, or a name such "
                "as timm:vit_tiny_patch16_224, torchvision:resnet18 or wrn-28-2"
            )

    @property
    def objective(self) -> str:
        """The name of the objective."""
        return GOALS[self.goal][1] if self.goal in GOALS else self.goal


def look(place: str) -> Look:
    """What is in a folder, a table, a file of arrays, or a data set of this name.

    Raises:
        ValueError: nothing to train on, or nothing that can be listed.
    """
    import torch

    path = expanded(place)
    dataset, key = _kind(place, path)
    tars = _shards(path) if dataset == "webdataset" else {}
    words = [f"data.{key}={path.absolute()}"] if key else []
    if tars:
        words = [f"data.{setting}={_listed(files)}" for setting, files in tars.items()]
    images = take(dataset, words)
    found = Look(
        dataset,
        key,
        str(path.absolute()) if key else "",
        counts(images),
        _side(images),
        _group(path) if dataset == "table" else "",
        "cuda" if torch.cuda.is_available() else "cpu",
        tars,
    )
    _check(found)
    return found


def _kind(place: str, path: Path) -> tuple[str, str]:
    """The data set, and its setting that takes the path."""
    if path.is_dir():
        if (path / "train").is_dir() and not kinds.of_folder(str(path)):
            return "image_folder", "root"
        if kind := kinds.of_folder(str(path)):
            return kind, PLACES[kind]
        raise ValueError(
            f"{path} has no folder train; put the images of each class into {path}/train/<class>/, "
            "those without a class into unlabeled/, or name a table of images (CSV)"
        )
    if path.is_file():
        if kind := kinds.of_file(str(path)):
            return kind, PLACES[kind]
        ends = " ".join((*kinds.TABLES, *kinds.ARRAYS, ".tar"))
        raise ValueError(f"{path} is no folder, and no file that ends in one of {ends}")
    if place in plugins.available("dataset") and place not in ("image_folder", "table", "arrays"):
        return place, ""
    raise ValueError(
        f"no folder or file {path}; name a folder with train/<class>/*, a table, an array file, or "
        "a data set such as digits"
    )


def _shards(path: Path) -> dict[str, list[str]]:
    """The settings of tar shards, by the parts that their names tell; of one file, that one."""
    place = str(path.absolute())
    parts = kinds.shards_in(place) if path.is_dir() else {"train": [glob.escape(place)]}
    if path.is_dir() and not parts:
        raise ValueError(f"{path} has compressed shards alone; uncompress them")
    if "train" not in parts:
        raise ValueError(
            f"{path} has shards of {', '.join(parts)} alone; add those to train on, such as "
            "train-000.tar"
        )
    return {"shards" if part == "train" else f"{part}_shards": own for part, own in parts.items()}


def _listed(files: Sequence[str]) -> str:
    """A list of texts as a word of the command line."""
    return json.dumps([*files], ensure_ascii=False)


def _side(images: Inventory) -> int:
    sides = []
    for i in range(0, len(images.names), -(-len(images.names) // OPENED)):
        try:
            sides.append(max(images.open(i).size))
        except ValueError:  # `ssl-selmix data` tells of it
            continue
    return int(median(sides)) if sides else 32


def _group(path: Path) -> str:
    """The column of a table of text whose name is one that groups have."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        return ""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line = file.readline().strip()
    names = [name.strip(" \"'") for mark in ",;\t|" if mark in line for name in line.split(mark)]
    return next((name for name in names if name.lower() in GROUPS), "")


def _check(found: Look) -> None:
    """Refuse what no training could use.

    Raises:
        ValueError: names the class and what it lacks.
    """
    if "train" not in found.counts or len(found.labeled) < 2:
        raise ValueError(
            f"{found.place or found.dataset} has fewer than two classes to train on; ssl-selmix "
            f"data {_looked(found)} says what is there"
        )
    for part in ("validation", "test"):
        own = found.counts.get(part)
        if own and (odd := sorted(set(own) ^ set(found.labeled))):
            raise ValueError(
                f"class {odd[0]!r} is in one of train and {part} alone; add its images or remove "
                f"it (ssl-selmix data {_looked(found)} says more)"
            )
    parts = [part for part in ("validation", "test") if part not in found.counts]
    for name, num in found.labeled.items():
        held = sum(HeldOut.of(part, HELD).of_class(num) for part in parts)
        if num - held < 1:
            raise ValueError(
                f"class {name!r} has {num} images to train on, and {held} of them would be held "
                f"out for {' and '.join(parts)}; add images, or leave the class out"
            )


def _looked(found: Look) -> str:
    words = [found.dataset]
    for key, given in found.settings.items():
        words.append(f"data.{key}={given if isinstance(given, str) else _listed(given)}")
    return shlex.join(words)


def defaults(found: Look) -> Answers:
    """The answers that fit what was found."""
    return Answers(use="pool" if found.unlabeled or not found.key else "labels")


def check(found: Look, answers: Answers) -> None:
    """Refuse answers that do not fit the images.

    Raises:
        ValueError: there is no pool to learn from.
    """
    if answers.use == "pool" and found.key and not found.unlabeled:
        where = {
            "image_folder": f"put images into {found.place}/unlabeled",
            "table": "add rows without a label",
            "arrays": "add an array unlabeled_images",
            "hf": "add a split unlabeled",
            "webdataset": f"put unlabeled-000.tar into {found.place}",
        }[found.dataset]
        raise ValueError(
            f"there is no image without a label to learn from; {where}, or choose labels"
        )


def command(found: Look, answers: Answers) -> str:
    """The command line that gives the same file without a question."""
    words = ["ssl-selmix", "init", "--images", found.place or found.dataset]
    for answer in fields(answers):
        words += [f"--{answer.name}", getattr(answers, answer.name)]
    return shlex.join(words)


def text(found: Look, answers: Answers, file: str) -> str:
    """The YAML file.

    Args:
        found: the images.
        answers: what is wanted of them.
        file: its name, for the commands in its comments.

    Raises:
        ValueError: the answers do not fit the images.
    """
    check(found, answers)
    first = "fixmatch" if answers.use == "pool" else "supervised"
    steps = STEPS[answers.time][found.device]
    name = shlex.quote(file)
    dry = " features=none" if answers.network == "pretrained" else ""  # which computes no features
    lines = [
        "# Settings of a training, written by",
        f"#   {command(found, answers)}",
        "#",
        f"#   ssl-selmix train --config {name} --dry-run{dry}   # how long it takes",
        f"#   ssl-selmix train --config {name}",
        "#",
        "# ssl-selmix explain KEY says what a setting means, such as: ssl-selmix explain selmix.lr",
        "",
        f"# {_comment(found.told())}",
        f"dataset: {found.dataset}",
        "algorithms:",
        f"  - {first}  # learns from {USES[answers.use]}",
        "  - selmix  # then raises the objective below; posthoc in its place only moves boundaries",
        *_data(found, answers),
        *_model(found, answers),
        f"{first}:",
        f"  steps: {steps[0]}  # more of them make a better network, and take longer",
        f"  evaluate_every: {max(1, steps[0] // 20)}  # steps between validations",
        "selmix:",
        f"  objective: {answers.objective}  # {plugins.objectives()[answers.objective]}",
        f"  steps: {steps[1]}",
        "seed: 0  # another one draws another split; several of them show the spread",
    ]
    return "\n".join(lines) + "\n"


def _comment(line: str) -> str:
    """Text that stays in its line: names of classes come from outside."""
    return "".join(c if c.isprintable() else "�" for c in line)


def _data(found: Look, answers: Answers) -> list[str]:
    if not found.key:
        return []  # a data set of the package, whose defaults say how it is split
    lines = ["data:"]
    for key, given in found.settings.items():
        lines.append(f"  {key}: {json.dumps(given, ensure_ascii=False)}")
    if found.dataset != "arrays" or found.side > IN_MEMORY:
        side = _pixels(found, answers)
        lines.append(f"  size: {side}  # pixels a side, to which images are resized")
    if found.dataset == "table":
        name = found.group or "patient"
        lines.append(f"  # group_column: {name}  # its images then stay together in one part")
    lines += ["  labeled: {shape: all, largest: 0}  # all that validation and test leave"]
    if answers.use == "pool":
        lines += ["  unlabeled: {shape: unknown, largest: 0}  # all images without a label"]
    else:
        lines += ["  unlabeled: {shape: none, largest: 0}  # labels alone"]
    if "validation" in found.counts:
        lines += [f"  validation: {FOLDER}  # the images that you put there"]
    else:
        lines += [f"  validation: {HELD}  # of each class, to choose weights by"]
    if "test" not in found.counts:
        lines += [f"  test: {HELD}  # of each class, to judge by in the end"]
    return lines


def _pixels(found: Look, answers: Answers) -> int:
    gpu = found.device == "cuda"
    wanted = (32 if not gpu else 64) if answers.network == "small" else (224 if gpu else 96)
    return min(wanted, max(found.side, 8))


def _model(found: Look, answers: Answers) -> list[str]:
    gpu = found.device == "cuda"
    if answers.network == "small":
        tiny = min(found.side, _pixels(found, answers)) <= 16
        name = "cnn-32" if tiny else "wrn-28-2" if gpu else "wrn-10-4-s2"
        return ["model:", f"  name: {name}  # trained from scratch"]
    if answers.network == "pretrained":
        name = "timm:vit_small_patch14_dinov2.lvd142m" if gpu else "timm:tf_efficientnet_lite0"
        side = 224 if gpu else 96
        return [
            "model:",
            f"  name: {name}  # pip install timm",
            "  pretrained: true  # or a file of the weights, on a machine without a network",
            f"  size: {side}  # pixels a side that the network sees",
            "  tune: head  # its features stay, and are computed once; full trains all of it",
        ]
    library = ":" in answers.network
    lines = ["model:", f"  name: {json.dumps(answers.network)}"]
    return [*lines, *(["  pretrained: true"] if library else [])]
