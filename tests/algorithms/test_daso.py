"""DASO against recorded runs of the published code, and its memory, counts and options apart."""

import copy
import itertools
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import contract
from ssl_selmix.algorithm import Batch, Context
from ssl_selmix.algorithms.daso import DASO
from ssl_selmix.common import config, plugins
from ssl_selmix.contract import subjects
from ssl_selmix.methods import prototypes
from ssl_selmix.methods.prototypes import PrototypeClassifier, similarities, teacher_features
from ssl_selmix.training import engine
from tests.helpers.gaussians import recalls
from tests.helpers.golden import (
    Recorded,
    Vectors,
    assert_reproduces,
    batch_of,
    cases,
    linear,
    part,
    read,
    task_of,
)

RECORDED = read("daso.npz")
STEPS = ["pretrain", "main_T1.5", "main_T0.3", "fixed_alpha", "no_psa", "la", "abc"]
TOTAL = 250_000
SUBJECT = contract.subject("daso")
DATA = ["cifar10-lt", "cifar10-lt-uniform", "cifar10-lt-inverted", "cifar100-lt", "stl10-lt"]
PRESETS = [f"{data}-daso" for data in DATA]


def test_every_recorded_case_is_compared() -> None:
    assert cases(RECORDED) == {*STEPS, "queue", "pldist"}


# One step of the algorithm, on recorded features.


class Bernoulli:
    """`torch.bernoulli` with given uniform numbers, which remembers what it was asked."""

    def __init__(self, *uniform: Tensor) -> None:
        self.uniform = list(uniform)
        self.p: list[Tensor] = []

    def __call__(self, p: Tensor) -> Tensor:
        self.p.append(p)
        return (self.uniform[len(self.p) - 1] < p).to(p.dtype)


def algorithm_of(given: Vectors) -> DASO:
    config = DASO.Config(
        proto_temperature=float(given["T_proto"]),
        dist_temperature=float(given["T_dist"]),
        distribution_aware=bool(given["with_dist_aware"]),
        blend_weight=float(given["interp_alpha"]),
        align_weight=float(given["psa_weight"]),
        queue_length=int(given["queue_size"]),
        threshold=float(given["threshold"]),
        logit_adjustment=float(given["tau"]) if given["with_la"] else 0.0,
        balanced_head="W_abc" in given,
    )
    rows = torch.cat([given[f"features_{part}"] for part in ("l", "u_w", "u_s")])
    net = Recorded(rows, linear(given["W"], given["b"]))
    algorithm = DASO(net, task_of(given["counts"]), config)
    if algorithm.balanced is not None:
        algorithm.balanced.linear = linear(given["W_abc"], given["b_abc"])
    for k, features in enumerate(given["bank"]):
        algorithm.semantic.remember(features, torch.full((len(features),), k))
    algorithm.semantic.counts.copy_(given["pl_counts"])
    return algorithm


def recorded_step(case: str, monkeypatch: pytest.MonkeyPatch) -> Vectors:
    """All quantities that are recorded of a step."""
    given = part(RECORDED, case, "in")
    algorithm = algorithm_of(given)
    got: dict[str, Any] = {"prototypes_before": algorithm.semantic.prototypes}
    teacher = copy.deepcopy(algorithm)
    assert isinstance(teacher.net, Recorded)
    teacher.net.rows.data[: len(given["labels"])] = given["ema_features_l"]
    step = 0 if given["pretraining"] else int(given.get("iter", torch.tensor(5000)))
    sizes = [len(given[f"features_{part}"]) for part in ("l", "u_w", "u_s")]

    def judged(_: nn.Module, args: tuple[Tensor, ...], result: tuple[Tensor, Tensor]) -> None:
        got["p_blended"], (got["pred_class"], got["mask"]) = args[0], result

    algorithm.confidence.register_forward_hook(judged)
    draws = Bernoulli(*(given[k] for k in ("u_labelled", "u_unlabelled") if k in given))
    monkeypatch.setattr(torch, "bernoulli", draws)
    parts, _ = algorithm(batch_of(sizes, given["labels"]), Context(step, TOTAL, teacher))
    loss = torch.stack(list(parts.values())).sum()
    loss.backward()

    memory, weight = algorithm.semantic, given["W"]
    c, temperature = memory.prototypes, algorithm.config.proto_temperature
    logits_x, logits_w = (given[f"features_{v}"] @ weight.T + given["b"] for v in ("l", "u_w"))
    p, follow = logits_w.softmax(1), memory.follow
    q = memory(given["features_u_w"], given["features_u_s"])[0]
    if not algorithm.config.distribution_aware:  # recorded all the same, and not used
        got["pred_to_dist"] = follow[0]
        memory.config = prototypes.Config(dist_temperature=float(given["T_dist"]))
    got = {
        "loss_total": loss,
        "loss_cls": parts["labeled"],
        "loss_cons": parts["unlabeled"],
        "l_logits": logits_x + algorithm.config.logit_adjustment * algorithm.labeled_loss.log_pi,
        "linear_pl": p.argmax(1),
        "confidence": got["p_blended"].amax(1),
        "pushed_pl": got["pred_class"],
        "prototypes": c,
        "sim_weak": similarities(given["features_u_w"], c) / temperature,
        "sim_strong": similarities(given["features_u_s"], c) / temperature,
        "soft_target": q,
        "sem_pl": q.argmax(1),
        "current_pl_dist": memory.follow,
        "pred_to_dist": follow[p.argmax(1)][:, None],
        "grad_features": algorithm.net.rows.grad,
        "grad_W": algorithm.net.classifier.weight.grad,
        "grad_b": algorithm.net.classifier.bias.grad,
        **got,
    }
    if "alignment" in parts:
        got["loss_assign"] = parts["alignment"]
    if algorithm.balanced is not None:
        p_abc = memory.blend(algorithm.balanced.guess(given["features_u_w"]), q)
        got |= {
            "p_abc": p_abc,
            "loss_weight_abc": (p_abc.amax(1) >= 0.95).float(),
            "cls_loss_abc": parts["balanced_labeled"],
            "cons_loss_abc": parts["balanced_unlabeled"],
            "loss_abc": parts["balanced_labeled"] + parts["balanced_unlabeled"],
            "grad_W_abc": algorithm.balanced.linear.weight.grad,
        }
        for side, uniform, asked in zip(("l", "u"), draws.uniform, draws.p, strict=True):
            got[f"bern_prob_{side}"] = asked
            got["l_mask_abc" if side == "l" else "ul_mask_abc"] = (uniform < asked).float()
    pushed = torch.bincount(RECORDED[f"{case}.out.pushed_pl"], minlength=10)
    assert torch.equal(memory.window, pushed)
    return got


@pytest.mark.parametrize("case", STEPS)
def test_daso_reproduces_published_steps(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    got = recorded_step(case, monkeypatch)
    assert_reproduces(RECORDED, case, got)
    assert ("loss_assign" in got) == (case != "pretrain")
    if case == "no_psa":  # there the loss is left out, here it is 0
        assert float(got["loss_assign"].detach()) == 0


def test_weak_views_get_no_gradient_through_features_or_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gradient = recorded_step("abc", monkeypatch)["grad_features"]
    assert not gradient[8:40].any() and gradient[:8].any() and gradient[40:].any()


# The memory.


def memory(num_classes: int = 3, num_features: int = 2, **settings: Any) -> PrototypeClassifier:
    return PrototypeClassifier(num_classes, num_features, prototypes.Config(**settings))


def test_queue_reproduces_published_prototypes() -> None:
    given, expected = part(RECORDED, "queue", "in"), part(RECORDED, "queue", "out")
    queue = memory(10, 16, queue_length=int(given["max_size"]))
    got = {}
    for n in range(3):
        queue.remember(given[f"features_{n}"], given[f"labels_{n}"])
        got[f"prototypes_{n}"] = queue.prototypes
        got[f"sizes_{n}"] = queue.remembered.clamp_max(int(given["max_size"]))
    assert got.keys() == expected.keys()
    assert_reproduces(RECORDED, "queue", got)


@pytest.mark.parametrize("batch", [1, 5, 11])  # the last one is longer than a queue of three
def test_each_class_keeps_its_newest_images(batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queue = memory(queue_length=3)
    expected = [deque[Tensor](maxlen=3) for _ in range(3)]
    assert not queue.prototypes.any()
    for _ in range(8):
        features = torch.randn(batch, 2, generator=generator)
        labels = torch.randint(2, (batch,), generator=generator)  # none of class 2
        queue.remember(features, labels)
        for h, y in zip(features, labels, strict=True):
            expected[int(y)].append(h)
        for k, kept in enumerate(expected):
            mean = torch.stack([*kept]).mean(0) if kept else torch.zeros(2)
            torch.testing.assert_close(queue.prototypes[k], mean)
            assert {tuple(h.tolist()) for h in kept} <= {tuple(h) for h in queue.queue[k].tolist()}


def test_memory_is_part_of_the_state() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = memory(queue_length=3, count_every=3), memory(queue_length=3, count_every=3)
    draws = [torch.randn(4, 2, generator=generator) for _ in range(6)]
    labels = [torch.randint(3, (4,), generator=generator) for _ in range(6)]
    for step in range(6):
        if step == 4:  # in the middle of a window and of a ring
            new.load_state_dict(old.state_dict())
        for one in (old, new) if step >= 4 else (old,):
            one.remember(draws[step], labels[step])
            one.count(labels[step], step)
    for name, value in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], value), name
    assert old.counts.tolist() == torch.bincount(torch.cat(labels[3:]), minlength=3).tolist()


def test_a_class_without_an_image_is_equally_unlike_everything() -> None:
    queue = memory()
    queue.remember(torch.tensor([[1.0, 0], [0, 2.0]]), torch.tensor([0, 1]))
    features = torch.tensor([[3.0, 0], [0, 0], [-1, 1]], requires_grad=True)
    root = 0.5**0.5
    expected = torch.tensor([[1.0, 0, 0], [0, 0, 0], [-root, root, 0]])
    found = similarities(features, queue.prototypes)
    torch.testing.assert_close(found.detach(), expected)
    found.sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()


def test_the_length_of_a_feature_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    h, c = torch.randn(5, 4, generator=generator), torch.randn(3, 4, generator=generator)
    torch.testing.assert_close(similarities(1e-4 * h, 1e4 * c), similarities(h, c))


def test_alignment_is_the_cross_entropy_to_the_weak_view() -> None:
    queue = memory(2, 2, proto_temperature=0.5, align_weight=3.0)
    queue.remember(torch.eye(2), torch.arange(2))
    weak = torch.tensor([[2.0, 0]], requires_grad=True)
    strong = torch.tensor([[0.0, 5]], requires_grad=True)
    q, loss = queue(weak, strong)
    hit, miss = (torch.tensor([2.0, 0]).softmax(0)).tolist()  # cosines 1 and 0 over T = 0.5
    torch.testing.assert_close(q, torch.tensor([[hit, miss]]))
    logs = torch.tensor([miss, hit]).log()
    torch.testing.assert_close(loss.detach(), -3 * (hit * logs[0] + miss * logs[1]))
    loss.backward()
    assert weak.grad is None and not q.requires_grad
    assert strong.grad is not None and bool(strong.grad.any())


def test_nothing_waits_for_the_device() -> None:
    """Tensors on the meta device have no values that could be read."""
    queue = memory(num_features=4).to("meta")
    h, y = torch.empty(300, 4, device="meta"), torch.empty(300, device="meta", dtype=torch.int64)
    queue.remember(h, y)
    q, _ = queue(h, h)
    queue.count(queue.blend(q, q).argmax(1), step=99)


# The counts and the blend.


def test_counts_reproduce_published_windows() -> None:
    labels = RECORDED["pldist.in.labels"]
    counter = memory(10, 1, count_every=len(labels), dist_temperature=1.0)
    for step, classes in enumerate(labels):
        assert not counter.counts.any()
        counter.count(classes, step)
    got = {"counts": counter.counts.clone(), "normalised": counter.follow / counter.follow.sum()}
    counter.count(labels[0], step=2 * len(labels) - 1)  # the last one of another window
    got["counts_second_window"] = counter.counts
    assert_reproduces(RECORDED, "pldist", got)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_predictions_of_frequent_classes_follow_the_prototypes(temperature: float) -> None:
    counter = memory(dist_temperature=temperature)
    counter.counts.copy_(torch.tensor([1, 16, 0]))
    share = (1 / 16) ** (1 / temperature)
    assert counter.follow.tolist() == pytest.approx([share, 1, 0])
    p = torch.tensor([[0.6, 0.2, 0.2], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    q = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.3, 0.3, 0.4]])
    blended = counter.blend(p, q)
    torch.testing.assert_close(blended[0], (1 - share) * p[0] + share * q[0])
    assert torch.equal(blended[1:], torch.stack([q[1], p[2]]))


def test_before_the_first_count_the_linear_prediction_stands() -> None:
    """A run may be so short that its warm-up ends before the first window does."""
    p, q = torch.tensor([[0.6, 0.4]]), torch.tensor([[0.0, 1.0]])
    assert torch.equal(memory(2).blend(p, q), p)
    assert torch.equal(memory(2, distribution_aware=False, blend_weight=1.0).blend(p, q), q)


@pytest.mark.parametrize(("total", "first"), [(TOTAL, 5000), (1000, 20), (10, 0), (1, 0)])
def test_warmup_is_a_share_of_the_run(total: int, first: int) -> None:
    counter, (teacher, _) = memory(), with_batch_norm()
    started = [counter.started(Context(step, total, teacher)) for step in range(first + 1)]
    assert started == [False] * first + [True]


# The teacher.


def with_batch_norm(**settings: Any) -> tuple[DASO, Batch]:
    data, _ = subjects.make_data()
    algorithm = SUBJECT.make(data, **settings)
    assert isinstance(algorithm, DASO)
    return algorithm.train(), next(algorithm.batches(data, 0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_teacher_mode(mode: str, training: bool) -> None:
    teacher, batch = with_batch_norm()
    teacher.train(training)
    before, statistics = copy.deepcopy(teacher.net), subjects.digest(teacher)
    found = teacher_features(teacher, batch.x, mode)
    assert {module.training for module in teacher.modules()} == {training}
    assert not found.requires_grad
    with torch.no_grad():
        assert torch.equal(found, before.train(mode == "train").features(batch.x))
        other = copy.deepcopy(before).train(mode != "train").features(batch.x)
    assert not torch.allclose(found, other)
    assert (subjects.digest(teacher) == statistics) == (mode == "eval")


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_published_statistics_stay_if_the_teacher_averages_its_own(mode: str, buffers: str) -> None:
    def statistics(module: nn.Module) -> dict[str, Tensor]:
        return {k: v for k, v in module.state_dict().items() if "running_" in k}

    algorithm, batch = with_batch_norm(teacher_mode=mode)
    teacher = copy.deepcopy(algorithm).requires_grad_(False)
    before = {k: v.clone() for k, v in statistics(teacher).items()}
    algorithm(batch, Context(0, 4, teacher))
    engine.update_teacher(teacher, algorithm, 0.999, buffers)
    student = statistics(algorithm)
    for key, value in statistics(teacher).items():
        if buffers == "copy":
            assert torch.equal(value, student[key]), key
        elif mode == "eval":
            torch.testing.assert_close(value, torch.lerp(student[key], before[key], 0.999))
        else:
            moved = (value - before[key]).norm() / (student[key] - before[key]).norm()
            assert moved > 0.1, key  # and not 0.001


def test_features_are_the_teachers_and_come_before_the_step() -> None:
    algorithm, batch = with_batch_norm()
    teacher = SUBJECT.make(subjects.make_data()[0]).requires_grad_(False)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.5)
    before = copy.deepcopy(teacher)
    algorithm(batch, Context(0, 4, teacher))
    expected = memory(3, algorithm.semantic.queue.shape[2])
    expected.remember(teacher_features(before, batch.x), batch.y)
    assert torch.equal(algorithm.semantic.prototypes, expected.prototypes)


# The options.


def test_balanced_head_predicts_and_is_handed_on(tmp_path: Path) -> None:
    data, _ = subjects.make_data()
    plain, algorithm = (SUBJECT.make(data, balanced_head=b) for b in (False, True))
    assert (plain.head_name, algorithm.head_name) == ("classifier", "balanced")
    fitted = subjects.fit(algorithm, data, tmp_path).algorithm.eval()
    assert isinstance(fitted, DASO) and fitted.balanced is not None
    x = next(data.test_batches())
    with torch.no_grad():
        expected = fitted.balanced.linear(fitted.net.features(x))
        assert torch.equal(fitted.predict(x), expected)
        assert torch.equal(fitted.export().eval()(x), expected)
        assert not torch.allclose(fitted.net(x), expected)


def test_balanced_head_has_the_same_threshold() -> None:
    data, _ = subjects.make_data()
    for threshold in (0.0, 1.0):
        algorithm, ctx = SUBJECT.started(data, balanced_head=True, threshold=threshold)
        found = subjects.backward(algorithm, next(algorithm.batches(data, 0)), ctx)
        for name in ("unlabeled", "balanced_unlabeled"):
            assert (float(found[name].detach()) == 0) == (threshold == 1.0), name


def test_balanced_head_learns_unblended_labels_during_the_warmup() -> None:
    data, _ = subjects.make_data()
    losses = {}
    for warmup, weight in itertools.product((0.0, 1.0), (0.0, 1.0)):
        settings = {"distribution_aware": False, "blend_weight": weight, "warmup": warmup}
        algorithm, ctx = SUBJECT.started(data, balanced_head=True, **settings)
        found = subjects.backward(algorithm, next(algorithm.batches(data, 0)), ctx)
        losses[warmup, weight] = float(found["balanced_unlabeled"].detach())
        assert ("alignment" in found) == (warmup == 0)
    assert losses[1.0, 1.0] == losses[1.0, 0.0] == losses[0.0, 0.0] != losses[0.0, 1.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("proto_temperature", 0.0),
        ("dist_temperature", 0.0),
        ("blend_weight", 1.5),
        ("align_weight", -1.0),
        ("queue_length", 0),
        ("warmup", 2.0),
        ("count_every", 0),
        ("teacher_mode", "frozen"),
    ],
)
def test_settings_without_meaning_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be .*, not "):
        DASO.Config(**{field: value})


def test_the_labeled_loss_is_plain_by_default() -> None:
    """As in the paper; DASO w/ LA is an option, and FixMatch's own default differs."""
    assert DASO.Config().logit_adjustment == 0


def lines(preset: str) -> dict[str, Any]:
    return config.parse_yaml(plugins.preset_text(preset), preset)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_published_constants(preset: str) -> None:
    found = {key: value for key, value in lines(preset).items() if key.startswith("daso.")}
    built = config.compose({"daso": DASO.Config}, [("file", found)])[0]["daso"]
    assert isinstance(built, DASO.Config)
    assert round(built.warmup * built.steps) == 5000 and built.count_every == 100
    matched = preset == "cifar10-lt-daso"  # the only one with gamma_l = gamma_u and ten classes
    assert built.dist_temperature == (1.5 if matched else 0.3)
    text = plugins.preset_text(preset).splitlines()
    assert all("  # " in line for line in text if ": " in line and not line.startswith("#"))


@pytest.mark.slow
def test_daso_survives_a_pool_with_the_tail_turned_around() -> None:
    """The mismatch that the paper is about, in which plain FixMatch loses the rarest class."""
    of = {"seed": 1, "pool_reversed": True}
    plain, fixmatch = (recalls(n, **of, logit_adjustment=0.0) for n in ("supervised", "fixmatch"))
    daso = recalls("daso", **of, count_every=20)
    assert float(daso.mean() - plain.mean()) > 0.03
    assert float(daso.mean() - fixmatch.mean()) > 0.06
