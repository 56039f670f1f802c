"""Fine-tune any classifier that ends in a linear layer, from Python: SelMix, offsets, or both.

Shapes: N images, K classes, D features.
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from ssl_selmix import metrics
from ssl_selmix.algorithms.selmix import SelMix
from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.console import console, warn
from ssl_selmix.common.figures import NO_WIDTH, limits, percent
from ssl_selmix.common.names import unknown
from ssl_selmix.common.paths import expanded
from ssl_selmix.common.seeds import seed_of
from ssl_selmix.data import Data
from ssl_selmix.decision import DecisionRule
from ssl_selmix.finetuning import checks, controls, frozen, given, record
from ssl_selmix.finetuning.controls import logits_of
from ssl_selmix.finetuning.given import Images, LabeledImages
from ssl_selmix.finetuning.known import name_of
from ssl_selmix.finetuning.reading import Reader
from ssl_selmix.finetuning.surgery import (
    check_training,
    head_of,
    merged,
    split_classifier,
    tune_body,
)
from ssl_selmix.methods.weight_line import weights_of
from ssl_selmix.models import Classifier
from ssl_selmix.objectives import Function, Objective, get
from ssl_selmix.runs.folder import RESULTS
from ssl_selmix.runs.formats import BATCHES, PLAIN, Named, write_checked
from ssl_selmix.runs.summary import tell_small_classes
from ssl_selmix.training import engine
from ssl_selmix.training.log import StageLog

BOOTSTRAPS = 1000
OF_OBJECTIVES = ("step_size", "beta", "alpha", "tau", "lambda_max")
EXAMPLES = 8  # images by which a network is recognised
CHANCE = 1.2  # times the recall of guessing: up to there a model is said to guess


@dataclass(frozen=True)
class Result:
    """What `finetune` returns.

    before and after are the figures of results.json, measured on `measured_on`; change is the
    objective's figure after minus before, with the 95 % interval of a bootstrap over the images
    of each class. history has a row per re-estimation.

    rule holds the offsets that `posthoc` added to the classifier's bias, with their figures on the
    validation images (before, after, cross_fitted); fine_tuned are the figures before these were
    added, on `measured_on`. Both are None without posthoc; fine_tuned is, too, if nothing was
    trained. alpha is the point that `wise_ft` chose, 0 the start and 1 the end of training.

    rows has the figures on `measured_on` of all that was compared, `start` first: with posthoc also
    those of offsets on the start alone, which training has to beat. `table()` shows them.
    """

    model: nn.Module
    history: list[dict[str, Any]]
    before: dict[str, Any]
    after: dict[str, Any]
    change: float
    interval: tuple[float, float]
    measured_on: str
    rule: DecisionRule | None = None
    fine_tuned: dict[str, Any] | None = None
    alpha: float | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    examples: Tensor | None = field(default=None, repr=False)  # by which `export` checks a file

    def table(self) -> str:
        """The rows as text, in percent."""
        return controls.table(self.rows)

    def export(self, path: str | Path, *, tolerance: float = 1e-5) -> Path:
        """Write the model as ONNX (a name in .onnx) or torch.export (in .pt2), loaded and checked.

        The file takes what the model takes, in batches of any size, and is written only if it gives
        the same logits.

        Args:
            path: of the file.
            tolerance: largest deviation of a logit, relative to the largest logit.

        Raises:
            ValueError: the file exists, has another suffix, or would give other logits.
        """
        file = expanded(path)
        kind = file.suffix.removeprefix(".")
        if kind not in PLAIN:
            raise ValueError(f"{file} must end in .onnx or .pt2, by which its format is chosen")
        if file.exists():
            raise ValueError(f"{file} exists and is not overwritten; choose another name")
        if not (math.isfinite(tolerance) and tolerance > 0):
            raise ValueError(f"tolerance must be > 0, not {tolerance}; 1e-5 is the default")
        assert self.examples is not None
        model = Named(copy.deepcopy(self.model).float().cpu(), "the model")
        write_checked(kind, file, model, self.examples.split(BATCHES[0] + 1), tolerance)
        return file

    def save(self, path: str | Path) -> Path:
        """Write the model's tensors by name, for `model.load_state_dict` and `--init`.

        Raises:
            ValueError: the file exists.
        """
        file = Path(path)
        if file.exists():
            raise ValueError(f"{file} exists and is not overwritten; choose another name")
        content = io.BytesIO()
        torch.save(self.model.state_dict(), content)
        write_atomically(file, content.getvalue())
        return file

    def __str__(self) -> str:
        """Before and after in one line."""
        told = limits(*self.interval)
        told = told if told == NO_WIDTH else f"[{told}]"
        worst, mean = (
            f"{percent(self.before[name])} -> {percent(self.after[name])}"
            for name in ("min_recall", "mean_recall")
        )
        return (
            f"{self.measured_on}: worst class {worst}, mean recall {mean}; objective "
            f"{percent(self.change, signed=True)} points, 95 % interval {told}"
        )


def finetune(
    model: nn.Module,
    *,
    labeled: LabeledImages,
    validation: LabeledImages,
    unlabeled: Images | None = None,
    test: LabeledImages | None = None,
    objective: str | Function | Objective = "min_recall",
    posthoc: bool | Literal["only"] = False,
    wise_ft: bool = False,
    steps: int = 500,
    classifier: str | None = None,
    body: str = "trained",
    tune: str = "full",
    rank: int = 8,
    augment: Callable[[Tensor], Tensor] | None = None,
    transform: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Result:
    """Fine-tune a copy of a trained classifier for an objective; the model itself stays as it is.

    SelMix (Ramasubramanian et al., ICLR 2024, algorithm 1), step as in docs/methods/selmix.md.

    Args:
        model: any module N×C×H×W -> logits N×K whose last operation is a linear layer.
        labeled: training images with labels: a pair of tensors or arrays, a map-style dataset of
            (image, label) or of {"image": ..., "label": ...}, or a DataLoader of one, whose
            batches are not used; or a pair (paths or PIL images, labels), or a list of such pairs.
            Images are what the model takes, already normalised: floats. With `preprocessing` they
            may be bytes, C×H×W or H×W×C, which are normalised by it. With `class_names` labels may
            be names.
        validation: held-out images with labels, every class among them. Gains are estimated and
            the weights are chosen on them.
        unlabeled: images without labels (a dataset's labels, if it has some, are not looked at);
            None draws both images of a pair from `labeled`.
        test: images with labels, every class among them, to measure before and after on; None
            measures on validation, which the weights were chosen on and which flatters them.
        objective: a name, or a function of the joint confusion matrix; see `objectives.get`.
        posthoc: True: then choose offsets for the objective on the validation images, and add them
            to the classifier's bias (`ssl_selmix.posthoc`); "only": do so in the place of training.
        wise_ft: then take the best on validation of 21 networks on the line between the weights
            as they were and as training left them (Wortsman et al., CVPR 2022), before any offsets.
        steps: training steps.
        classifier: name of the linear layer, such as "fc"; None takes the last one.
        body: "frozen": only the classifier learns. Every image passes the rest of the model once,
            before training, which then sees features.
        tune: what learns beside the classifier, as `model.tune`: "full", all that is not frozen;
            "head", nothing, which without `augment` is body="frozen"; "bias"; "norm"; "lora",
            low-rank updates by peft, which the returned model has in its matrices. What is frozen
            keeps its batch statistics.
        rank: of lora's updates.
        augment: applied to each training batch N×C×H×W.
        transform: of each image as it was given, or of the RGB image in the file of a path; what
            it returns is what the model takes. Not of training alone: see `augment`.
        class_names: names for the logs, and for labels that are names.
        preprocessing: how image files become what the model takes, recorded in `out` for `predict`
            and `export`: {"mean": ..., "std": ...} per channel, of pixels in 0..1 as torchvision's
            Normalize takes them, and "crop": True for the central square (Resize(256),
            CenterCrop(224) and the like) in the place of the whole image.
        seed: of pairs and mixing weights.
        out: folder for the model's tensors (model.pt, which --init takes), results.json (which
            `compare` reads), validation.npz (which `posthoc` and `advise` read), checkpoints,
            metrics.jsonl, TensorBoard, and rule.npz with posthoc; None keeps none. If the network
            is one of ours, torchvision's or timm's, `load`, `predict` and `export` open it too.
        progress: show a progress bar.
        settings: fields of `SelMix.Config` that are no argument above, such as lr, temperature,
            batch, policy; without ema and constraints.

    Raises:
        ValueError: no linear head, labels out of range, a class missing from validation or test,
            unknown settings; the message says what to do.
    """
    _check_arguments(seed, augment, class_names, progress)
    place = _place(out)
    on_features = frozen.is_frozen(body, tune, augment)
    tune = "head" if on_features else tune
    net = tune_body(split_classifier(model, classifier), tune, rank, type(model).__name__)
    if head_of(model, classifier).bias is None:  # there is none to train, nor to return
        settings["train_bias"] = False
    config = _config(settings, steps, objective, posthoc)
    if wise_ft and tune == "lora":
        raise ValueError(
            "wise_ft takes networks on a line between weights, on which low-rank updates do not "
            "lie; leave it out, or tune something else"
        )
    if not isinstance(wise_ft, bool) or (wise_ft and posthoc == "only"):
        raise ValueError(
            f"wise_ft must be True or False, and False if posthoc='only' trains nothing, not "
            f"{wise_ft!r}"
        )
    reader = Reader.of(transform, preprocessing, class_names)
    data = given.assemble(
        model, net, labeled, validation, unlabeled, test, augment, class_names, seed, reader
    )
    how = checks.preprocessing_of(preprocessing, tuple(data.image_shape))
    for name in ("metrics.jsonl", "rule.npz", RESULTS) if place is not None else ():
        if (Path(place or "") / name).exists():
            raise ValueError(f"{place} holds another run, which is not overwritten; choose out=")
    # The engine seeds the global generators at every step; the caller's stay as they were.
    with torch.random.fork_rng([data.device] if data.device.type == "cuda" else []):
        network = _network(model, net, data, how, known=place is not None)
        examples = data.take(data.validation[: sum(BATCHES)]).float().cpu()
        if on_features:
            network = replace(network, body=net)
            data, net = frozen.embedded(data, net, _out(progress))
        else:
            check_training(net, data.take(data.labeled[: config.batch]))
        selmix = SelMix(net, data.task, config, _own(objective, data)).to(data.device)
        compared = controls.Compared(data, place, _told(objective), network)
        before = compared.start(selmix)
        _warn_of_chance(before, data)
        _warn_of_few(data)
        fitted, alpha = engine.Fitted(selmix, 0, 0, 0.0), None
        history: list[dict[str, Any]] = []
        if posthoc != "only":
            if posthoc:
                compared.beside(selmix, _asked(objective, selmix.objective), seed)
            begun = weights_of(net) if wise_ft else {}
            fitted, history = _train(selmix, data, place, progress)
            told = asdict(config) | {"posthoc": False} | ({"tune": tune} if tune != "full" else {})
            compared.add(controls.TRAINED, fitted, "selmix", told)
            if wise_ft:
                alpha = compared.between(fitted.algorithm, begun, selmix.objective)
    measured = copy.deepcopy(selmix.objective).cpu()
    kept, rule, fine_tuned = fitted.algorithm, None, None
    if posthoc:
        fine_tuned = compared.last if compared.trained else None
        rule = compared.shift(kept, _asked(objective, measured), seed, _out(progress))
    after = logits_of(kept, data)
    change, interval = bootstrap(measured, before, after, data.test_labels, seed)
    whole = copy.deepcopy(network.whole(kept.export()))  # the folder needs the parts again
    tuned = merged(model, whole, classifier, keep_bias=rule is not None)
    if place is not None:
        record.save_model(place, tuned)  # whose digest is among the results
        compared.write(kept)
    return Result(
        model=tuned,
        history=[row for row in history if row["kind"] == "validation"],
        before=compared.rows[controls.START],
        after=compared.last,
        change=change,
        interval=interval,
        measured_on="validation" if test is None else "test",
        rule=rule,
        fine_tuned=fine_tuned,
        alpha=alpha,
        rows=compared.rows,
        examples=examples,
    )


def _network(
    model: nn.Module, net: Classifier, data: Data, how: dict[str, Any] | None, *, known: bool
) -> record.Network:
    """How the network is built again; its name is looked for if the folder is `known`."""
    shape = tuple(data.image_shape)
    images = data.take(data.validation[:EXAMPLES])
    return record.Network(
        name_of(model, net, images) if known and len(shape) == 3 else None, shape, how
    )


def _told(objective: str | Function | Objective) -> str:
    """What results.json calls an objective."""
    return objective if isinstance(objective, str) else getattr(objective, "__name__", "of its own")


def _asked(
    objective: str | Function | Objective, measured: Objective
) -> str | Function | Objective:
    """What offsets are chosen for: by its name the worst class has a floor under mean recall."""
    return objective if objective == "min_recall" else copy.deepcopy(measured).cpu()


def _train(
    selmix: SelMix, data: Data, out: Path | None, progress: bool
) -> tuple[engine.Fitted, list[dict[str, Any]]]:
    """The fine-tuned algorithm with the weights that were best, and the rows of its log."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        images, pictures = selmix.images_per_step, out is not None
        names = data.class_names
        log = StageLog(folder, "selmix", names, _out(progress), images, pictures=pictures)
        fitted = engine.fit(selmix, data, folder, log, "finetune")
        rows = (folder / "metrics.jsonl").read_text().splitlines()
    return fitted, [json.loads(row) for row in rows]


def _place(out: Any) -> Path | None:
    """The folder of the caller.

    Raises:
        ValueError: it is no path, or an empty one.
    """
    if out is None:
        return None
    if not isinstance(out, str | os.PathLike) or not os.fspath(out):
        raise ValueError(f"out must be the path of a folder, or None, not {out!r}")
    return expanded(out)


def _check_arguments(seed: Any, augment: Any, class_names: Any, progress: Any) -> None:
    if not isinstance(progress, bool):
        raise ValueError(f"progress must be True or False, not {progress!r}")
    listed = isinstance(class_names, Sequence) and not isinstance(class_names, str | bytes)
    if class_names is not None and not (listed and all(isinstance(n, str) for n in class_names)):
        raise ValueError(f"class_names must be a list of text, or None, not {class_names!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, not {seed!r}")
    if augment is not None and not callable(augment):
        raise ValueError(
            f"augment must be a function of a training batch, not {augment!r}; leave it out"
        )


def _warn_of_few(data: Data) -> None:
    """Name the classes whose recalls on validation, by which weights are chosen, are uncertain."""
    k = len(data.class_names)
    counts = torch.bincount(data.validation_labels.cpu(), minlength=k).tolist()
    tell_small_classes(counts, data.class_names, console())


def _warn_of_chance(logits: Tensor, data: Data) -> None:
    """Say so if the model, before any step, does no better than guessing."""
    k = len(data.class_names)
    labels = data.test_labels.to(logits.device)
    hits = (logits.argmax(1) == labels).double()
    recalls = [float(hits[labels == c].mean()) for c in range(k)]
    if (mean := sum(recalls) / k) <= CHANCE / k:
        warn(
            f"the model, before any step, has a mean recall of {percent(mean)} % and guessing "
            f"{percent(1 / k)} %; are the images normalised as it was trained, and the classes in "
            "its order?"
        )


def _config(
    settings: dict[str, Any],
    steps: int,
    objective: str | Function | Objective,
    posthoc: bool | str,
) -> SelMix.Config:
    if not isinstance(posthoc, bool) and posthoc != "only":
        raise ValueError(f"posthoc must be True, False or 'only', not {posthoc!r}")
    # The two stay at their values: the rest of this module depends on it.
    own = {"objective", "steps", "ema", "constraints"}
    known = {f.name for f in fields(SelMix.Config)} - own
    for name in settings:
        if name not in known:
            raise ValueError(unknown("setting", name, known))
        if posthoc == "only" and name not in (*OF_OBJECTIVES, "train_bias"):
            raise ValueError(f"posthoc='only' trains nothing, so {name} means nothing; omit it")
    used = [n for n in settings if n in OF_OBJECTIVES]
    if used and not isinstance(objective, str):
        raise ValueError(
            f"{used[0]} belongs to an objective given by name; build yours with "
            f"objectives.get(..., {used[0]}=...)"
        )
    name = objective if isinstance(objective, str) else "mean_recall"
    return SelMix.Config(**{"steps": steps, "objective": name, **settings})


def _own(objective: str | Function | Objective, data: Data) -> Objective | None:
    """A copy of the caller's objective, whose multipliers stay; None for one given by name."""
    if isinstance(objective, str):
        return None
    return get(copy.deepcopy(objective), len(data.class_names))


def _out(progress: bool) -> Console:
    return console() if progress else Console(quiet=True)


def bootstrap(
    objective: Objective, before: Tensor, after: Tensor, labels: Tensor, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Change of an objective's figure, and its 95 % interval over images drawn within classes.

    Shape: logits N×K before and after, of the same images; labels (N,).
    """
    k = before.shape[1]
    predictions = torch.stack([before.argmax(1), after.argmax(1)]).cpu()
    labels = labels.cpu()
    by_class = [torch.nonzero(labels == c)[:, 0] for c in labels.unique()]
    generator = torch.Generator().manual_seed(seed_of(seed, "bootstrap"))

    def change(index: Tensor) -> float:
        first, second = (
            objective.metric(metrics.confusion_matrix(labels[index], p[index], k))
            for p in predictions
        )
        return second - first

    def draw() -> Tensor:
        return torch.cat(
            [rows[torch.randint(len(rows), (len(rows),), generator=generator)] for rows in by_class]
        )

    changes = torch.tensor([change(draw()) for _ in range(BOOTSTRAPS)], dtype=torch.float64)
    low, high = changes.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return change(torch.arange(len(labels))), (low, high)
