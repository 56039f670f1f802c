"""ABC against recorded runs of three published codes, and its head, masks and options apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import contract, losses
from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.abc import ABC
from ssl_selmix.contract import subjects
from ssl_selmix.methods.balanced_head import BalancedHead
from ssl_selmix.models.execution import Execution
from ssl_selmix.splits import long_tail_counts
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

RECORDED = read("abc.npz")
TWO_VIEWS = [f"official.epoch{e}" for e in (0, 250, 499)]
ONE_VIEW = [f"daso.iter{t}" for t in (0, 125_000, 249_999)]
SUBJECT = contract.subject("abc")
COUNTS = torch.tensor([100.0, 40.0, 10.0])


def test_every_recorded_case_is_compared() -> None:
    assert cases(RECORDED) == {*TWO_VIEWS, *ONE_VIEW, "usb", "ratios", "ema"}


def context(step: int, total: int) -> Context:
    """Of the teacher's predictions, ABC uses none."""
    teacher: Any = None
    return Context(step, total, teacher)


# One step of the algorithm, on recorded features.


class Bernoulli:
    """`torch.bernoulli` with given uniform numbers, which remembers what it was asked."""

    def __init__(self, given: Vectors) -> None:
        self.uniform = [given["uniform_l"], given["uniform_u"]]
        self.p: list[Tensor] = []
        self.masks: list[Tensor] = []

    def __call__(self, p: Tensor) -> Tensor:
        self.p.append(p)
        self.masks.append((self.uniform[len(self.masks)] < p).to(p.dtype))
        return self.masks[-1]

    def recorded(self) -> Vectors:
        (p_l, p_u), (mask_l, mask_u) = self.p, self.masks
        return {"bern_prob_l": p_l, "bern_prob_u": p_u, "mask_l": mask_l, "mask_u": mask_u}


def recorded_step(case: str, views: list[str], monkeypatch: pytest.MonkeyPatch) -> Vectors:
    """All quantities that are recorded of a step, with these strong views."""
    given = part(RECORDED, case, "in")
    blocks = [given[f"features_{name}"] for name in ("x", "u_w", *views)]
    net = Recorded(torch.cat(blocks), linear(given["W1"], given["b1"]))
    counts = given["counts"] if "counts" in given else RECORDED["ratios.out.counts_long"]
    settings = {"threshold": float(given["threshold"]), "strong_views": len(views)}
    algorithm = ABC(net, task_of(counts), ABC.Config(**settings))  # type: ignore[arg-type]
    algorithm.balanced.linear = linear(given["W2"], given["b2"])
    got: Vectors = {}

    def judged(_: nn.Module, args: tuple[Tensor, ...], result: tuple[Tensor, Tensor]) -> None:
        got["main_targets_u"], got["main_mask"] = result[0], result[1].repeat(2)

    algorithm.confidence.register_forward_hook(judged)
    draws = Bernoulli(given)
    monkeypatch.setattr(torch, "bernoulli", draws)
    step, total = int(given.get("epoch", given.get("iter"))), 250_000  # type: ignore[arg-type]
    ctx = Context(step * 500 if "epoch" in given else step, total, algorithm)
    assert int(given.get("total_epochs", torch.tensor(500))) == 500
    parts, logs = algorithm(batch_of([len(block) for block in blocks], given["y"]), ctx)
    loss = torch.stack(list(parts.values())).sum()
    loss.backward()
    assert float(logs["mask_rate"]) == float(got["main_mask"].mean())
    assert net.rows.grad is not None
    q = algorithm.balanced.guess(given["features_u_w"])
    return (
        got
        | draws.recorded()
        | {
            "loss": loss,
            "Lx": parts["labeled"],
            "Lu": parts["unlabeled"],
            "abc_labelled": parts["balanced_labeled"],
            "abc_cons": parts["balanced_unlabeled"],
            "abc_total": parts["balanced_labeled"] + parts["balanced_unlabeled"],
            "aux_soft_pl": q,
            "conf_mask_aux": losses.pseudo_label(q, settings["threshold"])[1],
            "bal_param": algorithm.balanced.ratio,
            "gradual": algorithm.balanced.kept(ctx),
            "gradual_ratio": algorithm.balanced.kept(ctx),
            "grad_W1": net.classifier.weight.grad,
            "grad_W2": algorithm.balanced.linear.weight.grad,
            # The encoder is a matrix that is the identity: features = rows @ encoder.T.
            "grad_enc": net.rows.grad.T @ net.rows.detach(),
            "grad_rows": net.rows.grad,
        }
    )


@pytest.mark.parametrize("case", TWO_VIEWS)
def test_abc_reproduces_published_steps_with_two_views(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = recorded_step(case, ["u_s1", "u_s2"], monkeypatch)
    for n in (1, 2):
        alone = recorded_step(case, [f"u_s{n}"], monkeypatch)
        got[f"abc_cons{n}"] = alone["abc_cons"]
    assert_reproduces(RECORDED, case, got)


@pytest.mark.parametrize("case", ONE_VIEW)
def test_abc_reproduces_published_steps_with_one_view(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_reproduces(RECORDED, case, recorded_step(case, ["u_s"], monkeypatch))


def test_weak_views_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = recorded_step(TWO_VIEWS[1], ["u_s1", "u_s2"], monkeypatch)["grad_rows"]
    assert not gradient[16:32].any()
    assert all(rows.any() for rows in (gradient[:16], gradient[32:48], gradient[48:]))


def test_hard_targets_reproduce_the_usb_code(monkeypatch: pytest.MonkeyPatch) -> None:
    given = part(RECORDED, "usb", "in")
    head = BalancedHead(10, given["counts"].double(), float(given["threshold"]), soft_targets=False)
    head.linear = linear(torch.eye(10), torch.zeros(10))
    draws = Bernoulli(given)
    monkeypatch.setattr(torch, "bernoulli", draws)
    weak, strong = given["logits_aux_u_w"], given["logits_aux_u_s"]
    ctx = context(int(given["epoch"]), int(given["epochs"]))
    chosen = head.choose(given["y"], head.guess(weak), ctx)
    found = head.objective(given["logits_aux_x"], given["y"], chosen, [strong])
    _, confident = losses.pseudo_label(head.guess(weak), float(given["threshold"]))
    got = draws.recorded() | {
        "mask_u": confident * draws.masks[1],  # there, one mask for both
        "abc_labelled": found["balanced_labeled"],
        "abc_cons": found["balanced_unlabeled"],
        "abc_total": found["balanced_labeled"] + found["balanced_unlabeled"],
    }
    assert_reproduces(RECORDED, "usb", got)


def test_ratios_reproduce_the_published_ones() -> None:
    largest, gamma = (int(RECORDED[f"ratios.in.{name}"]) for name in ("num_max", "gamma"))
    counts = torch.tensor(long_tail_counts(largest, gamma, 10))
    got = {
        "counts_long": counts,
        "ir2": BalancedHead(1, counts.double(), 0.95).ratio,
        "counts_cifar100_long_g20": torch.tensor(long_tail_counts(200, 20, 100)),
    }
    # Step imbalance (half of the classes equally large, half equally small) is no shape of ours.
    assert_reproduces(RECORDED, "ratios", got, without=["counts_step"])


def test_the_teacher_averages_like_the_published_one() -> None:
    given = part(RECORDED, "ema", "in")
    names = {"w": "w0", "rm": "rm0", "rv": "rv0"}

    def module(moved: float) -> nn.Module:
        found = nn.Module()
        found.register_parameter("w", nn.Parameter(given["w0"] + moved * given["delta_w"]))
        found.register_buffer("rm", given["rm0"] + moved * given["delta_rm"])
        found.register_buffer("rv", given["rv0"].clone())
        return found

    teacher = module(0.0)
    engine.update_teacher(teacher, module(1.0), float(given["alpha"]), "average")
    got = {f"ema_{name}": value for name, value in teacher.state_dict().items()}
    assert got.keys() == {f"ema_{name}" for name in names}
    # Weight decay there is a factor on all that the network holds, running statistics included;
    # here it is the optimizer's, of weight matrices alone.
    decayed = ["model_w", "model_bn_w", "model_rm", "model_rv"]
    assert_reproduces(RECORDED, "ema", got, without=decayed)


# The head.


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_the_rarest_class_is_found_wherever_it_stands(order: list[int]) -> None:
    head = BalancedHead(4, COUNTS[order].double(), 0.95)
    expected = torch.tensor([0.1, 0.25, 1.0])[order]
    torch.testing.assert_close(head.ratio, expected)


def test_a_class_without_labeled_images_is_not_the_rarest_one() -> None:
    head = BalancedHead(4, torch.tensor([100.0, 0.0, 20.0]).double(), 0.95)
    torch.testing.assert_close(head.ratio, torch.tensor([0.2, 1.0, 1.0]))
    torch.testing.assert_close(head.kept(context(1, 2)), torch.tensor([0.6, 1.0, 1.0]))


@pytest.mark.parametrize("total", [1, 7, 400, 1000, 250_000])
def test_unlabeled_masks_start_open_and_close_with_the_run(total: int) -> None:
    head = BalancedHead(4, COUNTS.double(), 0.95)
    steps = sorted({0, total // 3, total // 2, total - 1})
    for step in steps:
        share = (1 - head.kept(context(step, total))) / (1 - head.ratio)
        assert share[:2].tolist() == pytest.approx([step / total] * 2, abs=1 / 500 + 1e-6)
        assert not share[:2].gt(step / total + 1e-6).any()  # epochs are rounded down
    assert head.kept(context(0, total)).tolist() == [1, 1, 1]


def test_an_epoch_is_one_of_five_hundred() -> None:
    head = BalancedHead(4, COUNTS.double(), 0.95)
    kept = [head.kept(context(step, 250_000)) for step in (500, 999, 1000)]
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[1], kept[2])


def test_masks_equalise_the_classes() -> None:
    """Of each class, the labeled images and the late pseudo-labels are drawn equally often."""
    head = BalancedHead(3, COUNTS.double(), 0.0)
    num, times = torch.tensor([200, 80, 20]), 400
    y = torch.arange(3).repeat_interleave(num)
    asked: list[Tensor] = []
    bernoulli = torch.bernoulli

    def spy(p: Tensor) -> Tensor:
        asked.append(bernoulli(p))
        return asked[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "bernoulli", spy)
        torch.manual_seed(0)
        p = torch.eye(3)[y]
        for _ in range(times):
            head.choose(y, p, context(499, 500))
    for masks, p_kept in ((asked[::2], head.ratio), (asked[1::2], head.kept(context(499, 500)))):
        kept = torch.zeros(3).index_add(0, y.repeat(times), torch.cat(masks)) / times
        torch.testing.assert_close(kept, num * p_kept, rtol=0.05, atol=0.0)
    assert not all(torch.equal(mask, asked[0]) for mask in asked[::2])  # drawn anew


def test_masked_means_are_over_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    head = BalancedHead(3, torch.ones(3).double(), 0.6)  # equal classes: Bernoulli masks keep all
    generator = torch.Generator().manual_seed(0)
    x, strong = (torch.randn(4, 3, generator=generator) for _ in range(2))
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3]])
    y = torch.tensor([0, 1, 2, 0])
    found = head.objective(x, y, head.choose(y, p, context(0, 1)), [strong, x])
    logs = [head(h).log_softmax(1) for h in (x, strong)]
    labeled = -logs[0][torch.arange(4), y].mean()
    unlabeled = -sum((p[i] * log[i]).sum() for i in (0, 2) for log in logs) / 4
    torch.testing.assert_close(found["balanced_labeled"], labeled)
    torch.testing.assert_close(found["balanced_unlabeled"], unlabeled)


def test_a_certain_target_gives_no_nan() -> None:
    """The published log(softmax) is -inf * 0 where a probability underflows."""
    head = BalancedHead(3, COUNTS.double(), 0.95)
    head.linear = linear(torch.eye(3), torch.zeros(3))
    features = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    y = torch.zeros(1).long()
    chosen = head.choose(y, head.guess(features), context(0, 1))
    found = head.objective(features, y, chosen, [features])
    torch.stack(list(found.values())).sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()


# The algorithm.


@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_strong_views_are_asked_for_and_counted(num_views: int) -> None:
    data, _ = subjects.make_data()
    algorithm = SUBJECT.make(data, strong_views=num_views)
    assert tuple(algorithm.views) == ("weak", *["strong"] * num_views)
    assert algorithm.images_per_step == 4 * (1 + 2 * (1 + num_views))
    batch = next(algorithm.batches(data, 0))
    assert len(batch.u) == 1 + num_views
    if num_views > 1:
        assert not torch.equal(batch.u[1], batch.u[2])
    ctx = Context(0, 4, algorithm)
    assert all(loss.isfinite() for loss in subjects.backward(algorithm, batch, ctx).values())


def test_options_reach_the_second_head() -> None:
    data, _ = subjects.make_data()
    losses_of = {}
    for threshold, soft in ((0.0, True), (0.0, False), (1.0, True)):
        algorithm, ctx = SUBJECT.started(data, threshold=threshold, soft_targets=soft)
        batch = next(algorithm.batches(data, 0))
        found = subjects.backward(algorithm, batch, ctx)["balanced_unlabeled"]
        losses_of[threshold, soft] = float(found.detach())
    assert losses_of[1.0, True] == 0  # no prediction is that sure
    assert 0 < losses_of[0.0, False] != losses_of[0.0, True] > 0


def test_both_heads_teach_the_features_and_the_second_one_predicts(tmp_path: Path) -> None:
    data, _ = subjects.make_data()
    algorithm = SUBJECT.make(data)
    assert isinstance(algorithm, ABC)
    with torch.no_grad():
        algorithm.balanced.linear.bias.fill_(3.0)
    x = next(data.plain(data.validation))
    algorithm.eval()
    features = algorithm.net.features(x)
    assert torch.equal(algorithm.predict(x), algorithm.balanced.linear(features))
    assert not torch.allclose(algorithm.predict(x), algorithm.net(x))
    for head in (algorithm.net.classifier, algorithm.balanced.linear):
        algorithm.zero_grad(set_to_none=True)
        head(algorithm.net.features(x)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in algorithm.net.backbone.parameters())
    assert algorithm.head_name == "balanced"


def test_an_exported_network_can_begin_anew() -> None:
    data, _ = subjects.make_data()
    net = subjects.make_net(data).prepared(Execution("bf16"))
    exported = SUBJECT.make(data, net).export()
    assert exported.execution == net.execution
    before = exported.classifier.weight.clone()
    exported.begin_anew()  # its head has the shape of the one that it was built with
    assert not torch.equal(exported.classifier.weight, before)


def test_settings_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^strong_views must be >= 1, not 0"):
        ABC.Config(strong_views=0)


def test_the_labeled_loss_is_plain_by_default() -> None:
    """As in the paper; FixMatch's own default here is the adjusted loss."""
    assert ABC.Config().logit_adjustment == 0


@pytest.mark.slow
def test_abc_recalls_more_of_the_rare_classes() -> None:
    plain, abc = recalls("supervised", seed=1, logit_adjustment=0.0), recalls("abc", seed=1)
    assert float(abc[-1] - plain[-1]) > 0.1
    assert float(abc.mean() - plain.mean()) > 0.03
