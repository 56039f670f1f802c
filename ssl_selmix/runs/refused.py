"""What is refused before anything is trained: stages that do not fit the images or each other.

Each check is one rule. All raise ValueError with the rule, the value and a remedy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ssl_selmix.algorithm import Algorithm
from ssl_selmix.common import processes
from ssl_selmix.data import Data
from ssl_selmix.models.backbones import FEATURES
from ssl_selmix.models.weights import GAIN
from ssl_selmix.runs.plan import Plan
from ssl_selmix.training import machine


def for_images(plan: Plan, loaded: Data) -> None:
    """Refuse what no network has to be built for."""
    _check_sizes(plan, loaded)
    _check_kind(plan, loaded)
    _check_filters(plan, loaded)


def for_stages(plan: Plan, planned: Sequence[Algorithm], loaded: Data) -> None:
    """Refuse what the algorithms of all stages, on new networks, show."""
    _check_batches(planned)
    _check_pixels(plan, planned, loaded)
    _check_strong(plan, planned)
    if loaded.weights is not None or loaded.shares is not None:
        _check_weighs(plan, planned, "soft labels" if loaded.weights is None else "weights")
    _check_heads(plan, planned)


def _check_sizes(plan: Plan, loaded: Data) -> None:
    """Refuse batches that no machine of this size holds, before anything is made for them."""
    world, bytes_each = processes.world(), 4 * math.prod(loaded.image_shape)
    room = machine.memory(plan.device)
    for name, _ in plan.algorithms if room else ():
        batch, mu = plan.config[name].batch, getattr(plan.config[name], "mu", 0)
        size = bytes_each * batch * (1 + mu) // (world.size if world else 1)
        if room and size > room:
            raise ValueError(
                f"{name}.batch={batch}{f' with {name}.mu={mu}' if mu else ''} makes steps whose "
                f"images alone take {size / 2**30:.3g} GiB, and this machine has "
                f"{room / 2**30:.3g} GiB; lower it"
            )


def _check_kind(plan: Plan, loaded: Data) -> None:
    """Refuse a network of images for features, and one without a body for images."""
    name, shape = plan.config["model"].name, loaded.image_shape
    if (len(shape) == 1) == (name == FEATURES or plan.cached):
        return
    if name == FEATURES:
        raise ValueError(
            f"model.name={FEATURES} is for --dataset features, and {plan.request.dataset} has "
            "images; choose another network"
        )
    raise ValueError(
        f"{plan.request.dataset} gives {shape[0]} features an image, of which {name} makes "
        f"nothing; set model.name={FEATURES}"
    )


def without_weights(plan: Plan) -> None:
    """Refuse a first stage that only changes weights, without weights to change."""
    name, kind = plan.algorithms[0]
    model = plan.config["model"]
    body = model.name == FEATURES or model.starts_trained
    if not kind.trains and not plan.request.init and (kind.needs_classifier or not body):
        raise ValueError(
            f"{name} trains nothing and cannot come first; let it follow a method that does, such "
            f"as --algo fixmatch --then {name}, or give it weights with --init"
        )
    second = [one for one, kind in plan.algorithms[1:2] if kind.needs_origin]
    if second and not plan.request.init:
        raise ValueError(
            f"{second[0]} needs two networks, and {name} before it begins with random weights; "
            f"put a stage between them, such as --algo {name} --then selmix --then {second[0]}"
        )


def _check_heads(plan: Plan, planned: Sequence[Algorithm]) -> None:
    """Refuse what would start from a network that does not end in a linear layer."""
    decided = [name for name, a in zip(plan.stages, planned, strict=True) if not a.hands_on_linear]
    if decided and decided[0] != plan.stages[-1]:
        raise ValueError(
            f"{decided[0]} hands on a network that ends in a gain matrix, and no stage can start "
            "from that; make it the last one, or set rule=offsets"
        )
    if GAIN in plan.init:
        raise ValueError(
            f"--init {plan.request.init} ends in a gain matrix, which no stage can start from; "
            "give the model.pt of the stage before it"
        )


def _check_pixels(plan: Plan, planned: Sequence[Algorithm], loaded: Data) -> None:
    """Refuse methods that do something to images where there are features in their place."""
    for (name, _), algorithm in zip(plan.algorithms, planned, strict=True):
        why = algorithm.needs_pixels(algorithm.config)
        if len(loaded.image_shape) == 1 and why:
            raise ValueError(
                f"{name} cannot work on features: {why}; choose another method, or train on images"
            )


def _check_strong(plan: Plan, planned: Sequence[Algorithm]) -> None:
    """Refuse strong views of another kind for stages that see none."""
    strong, features = plan.config["views"].strong, plan.config["features"]
    if strong == type(plan.config["views"]).strong:
        return
    if plan.cached and not features.strong:
        raise ValueError(
            f"views.strong={strong} changes nothing, for features.strong=0 makes features of plain "
            "views alone; set features.strong=4, say, or leave it out"
        )
    if not any("strong" in algorithm.views for algorithm in planned):
        names = " and ".join(name for name, _ in plan.algorithms)
        raise ValueError(
            f"views.strong={strong} changes nothing, for {names} makes no strong view; leave it "
            "out, or choose a method that does, such as fixmatch"
        )


def _check_weighs(plan: Plan, planned: Sequence[Algorithm], what: str) -> None:
    """Refuse stages that would learn from the classes of images and look at nothing else."""
    settings = plan.config["data"]
    told = f"weight_column={settings.weight_column}" if what == "weights" else "annotators=soft"
    for (name, kind), algorithm in zip(plan.algorithms, planned, strict=True):
        weighs = getattr(kind.forward, "weighs_labels", False)
        if not (weighs if kind.trains else "labeled" not in algorithm.needs_features(0)):
            raise ValueError(
                f"data.{told}: {name} takes no {what} of labeled images; leave the setting out, or "
                "take a method whose labeled loss is a sum over images, such as fixmatch, "
                "supervised or crt"
            )


def _check_filters(plan: Plan, loaded: Data) -> None:
    """Refuse to judge labels that several people disagree about."""
    for name, _ in plan.algorithms if loaded.shares is not None else ():
        if (found := getattr(plan.config[name], "label_filter", "none")) != "none":
            raise ValueError(
                f"{name}.label_filter={found} judges whether an image has its one class, and "
                "data.annotators=soft gives it several; leave out one of them"
            )


def _check_batches(algorithms: Sequence[Algorithm]) -> None:
    """Every process must pass as many images, or their gradients would count differently."""
    world = processes.world()
    for algorithm in algorithms if world else ():
        assert world is not None
        if algorithm.config.batch % world.size:
            raise ValueError(
                f"batch={algorithm.config.batch} cannot be shared by {world.size} processes; make "
                "it a multiple of their number"
            )
