"""What every algorithm promises, whatever it does; a new file in `algorithms/` is covered too."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from ssl_selmix import checkpoint, config, engine, models, plugins
from ssl_selmix.algorithm import Algorithm, Batch, Context, Views
from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.data import Data, Diagnostics, ImageSet, LazyViews, assemble
from ssl_selmix.log import StageLog
from ssl_selmix.models import Classifier
from ssl_selmix.splits import Counts, LongTailSplit

NAMES = sorted(plugins.available("algorithm"))
TINY = {"steps": 4, "batch": 4, "evaluate_every": 2}

every_algorithm = pytest.mark.parametrize("name", NAMES)
two_and_three_classes = pytest.mark.parametrize("num_classes", [2, 3])


class Quiet(StageLog):
    """A log that keeps rows in memory and draws no picture."""

    def __init__(self) -> None:
        super().__init__(Path(), "test", (), Console(file=io.StringIO()), 1)
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def stage(self, step: int, total: int, *, resumed: bool = False) -> Iterator[None]:
        yield

    def training(self, step: int, values: dict[str, float]) -> None:
        self.rows.append({"kind": "train", "step": step, **values})

    def validation(
        self, step: int, figures: dict[str, Any], extra: dict[str, Tensor], confusion: Tensor
    ) -> None:
        self.rows.append({"kind": "validation", "step": step, **figures, **extra})


class Killed(Exception):
    """Stands for the end of the process."""


class Recorder(Views):
    """Views that remember which of them were asked for."""

    def __init__(self, views: Views) -> None:
        self.views = views
        self.asked: set[int] = set()

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, view: int) -> Tensor:
        self.asked.add(view)
        return self.views[view]

    def select(self, view: int, rows: Tensor) -> Tensor:
        self.asked.add(view)
        return self.views.select(view, rows)


def make_source(num_classes: int = 3) -> ImageSet:
    """Twenty noisy copies of one 8×8 pattern per class."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(2, (num_classes, 1, 8, 8), generator=generator) * 180
    labels = np.arange(num_classes).repeat(20)
    noise = torch.randint(76, (len(labels), 1, 8, 8), generator=generator)
    return ImageSet(
        train=(patterns[torch.from_numpy(labels)] + noise).to(torch.uint8),
        train_labels=labels,
        class_names=tuple("abc"[:num_classes]),
        mean=(127.5,),
        std=(94.0,),
        weak=Weak(pad=1, flip=False),
        strong=Strong(weak=Weak(pad=1, flip=False)),
    )


def make_data(num_classes: int = 3, pool_labels: int | None = None) -> tuple[Data, Diagnostics]:
    """The data of a run; `pool_labels` overwrites the pool's true labels after the split."""
    source = make_source(num_classes)
    rule = LongTailSplit(Counts(6, rho=3), Counts(8, rho=2), validation=3, test=2)
    split = rule.draw(source.train_labels, num_classes, seed=0)
    if pool_labels is not None:
        labels = source.train_labels.copy()
        labels[split.unlabeled] = pool_labels
        source = dataclasses.replace(source, train_labels=labels)
    data, diagnostics = assemble(source, split, seed=0, device=torch.device("cpu"))
    return data.at_stage("1-test"), diagnostics


def make_net(data: Data) -> Classifier:
    torch.manual_seed(1)
    return models.build(models.Config("cnn-4"), len(data.class_names), 1)


def make(name: str, data: Data, net: Classifier | None = None, **options: Any) -> Algorithm:
    """The algorithm with few steps, on a network that is the same at each call."""
    _, kind = plugins.algorithm(name)
    if hasattr(kind.Config, "threshold"):  # at 0 every pseudo-label takes part from the start
        options.setdefault("threshold", 0.0)
    torch.manual_seed(2)
    return kind(net or make_net(data), data.task, kind.Config(**TINY | options))


def started(name: str, data: Data, **options: Any) -> tuple[Algorithm, Context]:
    """An algorithm after the validation that comes before its first step."""
    algorithm = make(name, data, **options).train()
    teacher = make(name, data, **options).requires_grad_(False)
    ctx = Context(0, TINY["steps"], teacher)
    algorithm.on_validation(engine.evaluate(teacher, data, pool=algorithm.needs_pool(0)), ctx)
    return algorithm, ctx


def backward(algorithm: Algorithm, batch: Batch, ctx: Context) -> dict[str, Tensor]:
    torch.manual_seed(3)
    losses: dict[str, Tensor] = algorithm(batch, ctx)[0]
    algorithm.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    return losses


def fit(
    algorithm: Algorithm,
    data: Data,
    folder: Path,
    resume: bool = False,
    diagnostics: Diagnostics | None = None,
) -> engine.Fitted:
    return engine.fit(algorithm, data, folder, Quiet(), "f", resume=resume, diagnostics=diagnostics)


def saved(folder: Path) -> dict[str, str]:
    """Digests of a stage's checkpoints, without the wall time in them."""
    found = {path.name: checkpoint.load(path) for path in sorted(folder.glob("*.pt"))}
    return {
        name: checkpoint.digest({k: v for k, v in state.items() if k != "seconds"})
        for name, state in found.items()
    }


def is_finite(module: nn.Module) -> bool:
    return all(bool(t.isfinite().all()) for t in (*module.parameters(), *module.buffers()))


def digest(module: nn.Module) -> str:
    return checkpoint.digest(module.state_dict())


def momenta(net: Classifier) -> list[float | None]:
    kind = nn.modules.batchnorm._BatchNorm
    return [module.momentum for module in net.modules() if isinstance(module, kind)]


@every_algorithm
@two_and_three_classes
def test_losses_are_finite_and_give_every_trained_parameter_a_gradient(
    name: str, num_classes: int
) -> None:
    data, _ = make_data(num_classes)
    algorithm, ctx = started(name, data)
    losses = backward(algorithm, next(algorithm.batches(data, 0)), ctx)
    assert losses
    for key, loss in losses.items():
        assert loss.ndim == 0 and loss.isfinite(), key
    trained = {key: p for key, p in algorithm.named_parameters() if p.requires_grad}
    for key, parameter in trained.items():
        assert parameter.grad is not None, f"{key} gets no gradient; freeze it or use it"
        assert parameter.grad.isfinite().all(), key
    assert any(p.grad is not None and bool(p.grad.any()) for p in trained.values())


@every_algorithm
def test_logs_are_detached_scalars_under_names_of_their_own(name: str) -> None:
    data, _ = make_data()
    algorithm, ctx = started(name, data)
    losses, logs = algorithm(next(algorithm.batches(data, 0)), ctx)
    for key, value in logs.items():
        assert not value.requires_grad and value.ndim == 0 and value.isfinite(), key
    assert not logs.keys() & {"loss", "lr", "step", "kind", *(f"loss_{key}" for key in losses)}


@every_algorithm
def test_the_optimizer_gets_each_trained_parameter_once_and_no_frozen_one(name: str) -> None:
    data, _ = make_data()
    algorithm = make(name, data)
    given = [id(p) for group in algorithm.param_groups() for p in group["params"]]
    assert len(given) == len(set(given))
    assert set(given) == {id(p) for p in algorithm.parameters() if p.requires_grad}
    assert all("lr_scale" in group for group in algorithm.param_groups())


@every_algorithm
def test_frozen_parameters_of_the_network_stay_and_others_move(name: str, tmp_path: Path) -> None:
    data, _ = make_data()
    algorithm = make(name, data, keep="last", ema=0.0)
    net = algorithm.net
    before = {key: p.clone() for key, p in net.named_parameters()}
    frozen = {key for key, p in net.named_parameters() if not p.requires_grad}
    fit(algorithm, data, tmp_path)
    same = {key for key, p in net.named_parameters() if torch.equal(p, before[key])}
    assert frozen <= same
    assert "classifier.weight" not in same


@every_algorithm
def test_on_validation_returns_detached_scalars_vectors_and_matrices(name: str) -> None:
    data, _ = make_data()
    algorithm, ctx = started(name, data)
    evaluation = engine.evaluate(algorithm, data, pool=algorithm.needs_pool(0))
    for key, value in algorithm.on_validation(evaluation, ctx).items():
        assert not value.requires_grad, key
        assert value.shape in {(), (3,), (3, 3)} and value.isfinite().all(), key


@every_algorithm
def test_a_forward_asks_for_declared_views_only_and_leaves_its_inputs(name: str) -> None:
    data, _ = make_data()
    algorithm, ctx = started(name, data)
    images = data.images.clone()
    batch = next(algorithm.batches(data, 0))
    assert isinstance(batch.u, LazyViews) and len(batch.u) == len(algorithm.views)
    assert set(algorithm.views) <= {"weak", "strong"}
    recorder = Recorder(batch.u)
    before = [t.clone() for t in (batch.x, batch.y, batch.index_u)]
    views = [batch.u[view].clone() for view in range(len(batch.u))]
    backward(algorithm, dataclasses.replace(batch, u=recorder), ctx)
    assert recorder.asked <= set(range(len(algorithm.views)))
    after = [batch.x, batch.y, batch.index_u, *(batch.u[view] for view in range(len(batch.u)))]
    assert all(torch.equal(a, b) for a, b in zip([*before, *views], after, strict=True))
    assert torch.equal(data.images, images)


@every_algorithm
def test_a_batch_depends_on_seed_stage_and_step_alone(name: str) -> None:
    data, _ = make_data()

    def contents(data: Data, start: int, skip: int = 0) -> str:
        algorithm, _ = started(name, data)
        batch = next(itertools.islice(algorithm.batches(data, start), skip, None))
        views = [batch.u[view] for view in range(len(batch.u))]
        return checkpoint.digest([batch.x, batch.y, batch.index_u, *views])

    expected = contents(data, 3)
    torch.manual_seed(99)
    assert contents(data, 0, skip=3) == expected
    assert contents(data, 4) != expected
    assert contents(dataclasses.replace(data, seed=1), 3) != expected
    assert contents(data.at_stage("2-test"), 3) != expected


@every_algorithm
def test_backward_does_not_touch_the_teacher(name: str) -> None:
    data, _ = make_data()
    algorithm, ctx = started(name, data)
    before = digest(ctx.teacher)
    backward(algorithm, next(algorithm.batches(data, 0)), ctx)
    assert digest(ctx.teacher) == before
    assert all(p.grad is None for p in ctx.teacher.parameters())


@every_algorithm
def test_evaluation_changes_nothing_and_agrees_with_predict(name: str) -> None:
    data, _ = make_data()
    algorithm, _ = started(name, data)
    before = digest(algorithm)
    evaluation = engine.evaluate(algorithm, data, pool=True)
    assert digest(algorithm) == before and algorithm.training
    assert evaluation.pool_logits is not None and len(evaluation.pool_logits) == len(data.unlabeled)
    algorithm.eval()
    with torch.no_grad():
        predicted = algorithm.predict(next(data.plain(data.validation)))
    assert torch.equal(predicted, evaluation.logits)


@every_algorithm
def test_export_predicts_what_predict_predicts(name: str, tmp_path: Path) -> None:
    data, _ = make_data()
    net = make_net(data)
    expected_momenta = momenta(net)
    fitted = fit(make(name, data, net), data, tmp_path).algorithm.eval()
    exported = fitted.export().eval()
    x = next(data.test_batches())
    with torch.no_grad():
        expected = fitted.predict(x)
        assert torch.equal(exported(x), expected)
        assert torch.equal(exported.classifier(exported.features(x)), expected)
    # A network of its own: training it leaves the stage that it came from alone.
    mine = {t.data_ptr() for t in (*fitted.parameters(), *fitted.buffers()) if t.numel()}
    assert not mine & {t.data_ptr() for t in (*exported.parameters(), *exported.buffers())}
    assert momenta(exported) == expected_momenta


@pytest.mark.parametrize(("first", "second"), [*itertools.product(NAMES, NAMES)])
def test_every_algorithm_starts_where_every_other_one_ended(
    first: str, second: str, tmp_path: Path
) -> None:
    data, _ = make_data()
    net = fit(make(first, data), data, tmp_path / "1").algorithm.export().requires_grad_(True)
    algorithm = make(second, data.at_stage("2-test"), net)
    x = next(data.test_batches())
    with torch.no_grad():
        handed_on = net.eval()(x)
    fitted = fit(algorithm, data.at_stage("2-test"), tmp_path / "2")
    with torch.no_grad():
        assert algorithm.predict(x).shape == handed_on.shape
        assert fitted.algorithm.eval().predict(x).isfinite().all()


@every_algorithm
def test_state_dict_brings_predictions_and_the_next_step_back(name: str, tmp_path: Path) -> None:
    data, _ = make_data()
    old = make(name, data, keep="last")
    fit(old, data, tmp_path)
    other_net = models.build(models.Config("cnn-4"), 3, 1)  # other weights
    new = make(name, data, other_net)
    assert digest(new) != digest(old)
    new.load_state_dict(old.state_dict())
    x = next(data.test_batches())
    with torch.no_grad():
        assert torch.equal(new.eval().predict(x), old.eval().predict(x))
    ctx = Context(2, 4, make(name, data).requires_grad_(False))
    batches = [next(algorithm.train().batches(data, 2)) for algorithm in (old, new)]
    losses = [backward(a, batch, ctx) for a, batch in zip((old, new), batches, strict=True)]
    assert checkpoint.digest(losses[0]) == checkpoint.digest(losses[1])
    gradients = [[p.grad for p in algorithm.parameters()] for algorithm in (old, new)]
    assert checkpoint.digest(gradients[0]) == checkpoint.digest(gradients[1])


@every_algorithm
@pytest.mark.parametrize(("moment", "ema"), [(1, None), (12, 0.0), (23, 0.0), (23, None)])
def test_killed_and_resumed_ends_like_undisturbed(
    name: str, moment: int, ema: float | None, tmp_path: Path
) -> None:
    data, _ = make_data()
    # Ten steps are the least that SelMix trains between two validations.
    options: dict[str, Any] = {"steps": 24, "evaluate_every": 10}
    options |= {} if ema is None else {"ema": ema}
    whole = fit(make(name, data, **options), data, tmp_path / "whole")

    algorithm = make(name, data, **options)
    after_step = algorithm.after_step

    def die(ctx: Context) -> None:
        after_step(ctx)
        if ctx.step == moment:
            raise Killed

    algorithm.after_step = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        fit(algorithm, data, tmp_path / "cut")
    torch.manual_seed(1234)  # whatever state the new process starts in
    resumed = fit(make(name, data, **options), data, tmp_path / "cut", resume=True)

    assert saved(tmp_path / "cut") == saved(tmp_path / "whole")
    assert digest(resumed.algorithm) == digest(whole.algorithm)
    assert resumed.step == whole.step


@every_algorithm
@pytest.mark.parametrize("lr", [0.01, 1.0])
def test_best_weights_are_those_that_were_measured(name: str, lr: float, tmp_path: Path) -> None:
    data, _ = make_data()
    options: dict[str, Any] = {"steps": 30, "evaluate_every": 10, "select": "accuracy", "lr": lr}
    fitted = fit(make(name, data, **options), data, tmp_path)
    best = checkpoint.load(tmp_path / "best.pt")
    copy = make(name, data, **options)
    copy.load_state_dict(best["teacher"])
    for algorithm in (copy, fitted.algorithm):
        figures = engine.measure(engine.evaluate(algorithm, data), data.task.tail)
        assert figures["accuracy"] == best["value"]
    assert fitted.step == best["step"]


@every_algorithm
def test_true_labels_of_the_pool_reach_no_weight(name: str, tmp_path: Path) -> None:
    honest, diagnostics = make_data()
    poisoned, _ = make_data(pool_labels=0)
    unknown, _ = make_data(pool_labels=-1)
    garbage = Diagnostics(torch.full_like(diagnostics.labels, 2))
    runs = {"a": (honest, diagnostics), "b": (honest, garbage)}
    runs |= {"c": (poisoned, garbage), "d": (unknown, None)}  # type: ignore[dict-item]
    for key, (data, labels) in runs.items():
        fit(make(name, data), data, tmp_path / key, diagnostics=labels)
    assert saved(tmp_path / "b") == saved(tmp_path / "a")
    assert saved(tmp_path / "c") == saved(tmp_path / "a")
    assert saved(tmp_path / "d") == saved(tmp_path / "a")


@every_algorithm
@two_and_three_classes
def test_a_class_may_be_missing_from_the_batch(name: str, num_classes: int) -> None:
    data, _ = make_data(num_classes)
    algorithm, ctx = started(name, data)
    batch = next(algorithm.batches(data, 0))
    losses = backward(algorithm, dataclasses.replace(batch, y=torch.zeros_like(batch.y)), ctx)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in algorithm.parameters() if p.grad is not None)


@every_algorithm
@pytest.mark.parametrize("missing", [0, 2])
def test_a_class_may_be_missing_from_the_labeled_set(
    name: str, missing: int, tmp_path: Path
) -> None:
    data, _ = make_data()
    kept = data.labels != missing
    data = dataclasses.replace(data, labeled=data.labeled[kept], labels=data.labels[kept])
    assert data.task.labeled_counts[missing] == 0
    fitted = fit(make(name, data), data, tmp_path)
    assert is_finite(fitted.algorithm)


@every_algorithm
@two_and_three_classes
def test_classes_may_be_without_pseudo_labels(name: str, num_classes: int, tmp_path: Path) -> None:
    data, _ = make_data(num_classes)
    net = make_net(data)
    with torch.no_grad():
        net.classifier.bias[0] = 50  # every image is taken for class 0, with certainty
    fitted = fit(make(name, data, net), data, tmp_path)
    assert is_finite(fitted.algorithm)


@every_algorithm
def test_the_configuration_refuses_values_without_meaning(name: str) -> None:
    _, kind = plugins.algorithm(name)
    wrong: dict[str, Any] = {"steps": 0, "batch": 0, "mu": 0, "lr": 0.0, "momentum": 1.0}
    wrong |= {"weight_decay": -1.0, "schedule": "linear", "ema": 1.0, "ema_buffers": "no"}
    wrong |= {"evaluate_every": 0, "keep": "first"}
    for field, value in wrong.items():
        with pytest.raises(ValueError, match=rf"^{field} must be .*, not "):
            kind.Config(**{field: value})


@every_algorithm
def test_no_number_may_be_nan(name: str) -> None:
    data, _ = make_data()
    _, kind = plugins.algorithm(name)
    floats = [
        f.name
        for f in dataclasses.fields(kind.Config)
        if "float" in str(f.type) and "list" not in str(f.type)
    ]
    for field in floats:
        with pytest.raises(ValueError, match=field):
            make(name, data, None, **{field: math.nan})


@every_algorithm
def test_the_configuration_survives_yaml(name: str) -> None:
    _, kind = plugins.algorithm(name)
    objects, plain = config.compose({name: kind.Config}, [])
    assert objects[name] == kind.Config()
    again, _ = config.compose({name: kind.Config}, [("file", config.flatten(plain))])
    assert again == objects


@every_algorithm
def test_the_listing_has_a_line_for_it(name: str) -> None:
    line = plugins.available("algorithm")[name]
    assert line.endswith(".") and len(line) < 110
