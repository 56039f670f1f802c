"""CPE against recorded steps of the published code, its norms, and what they fold into."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import cli, contract
from ssl_selmix.algorithm import Batch, Context
from ssl_selmix.algorithms.cpe import CPE, Guesses
from ssl_selmix.contract import life, reporting, subjects
from ssl_selmix.contract.step import check_gradients
from ssl_selmix.data.batch import Task
from ssl_selmix.methods.class_norms import MapMoments
from ssl_selmix.metrics import confusion_matrix
from ssl_selmix.models import Classifier
from ssl_selmix.training import checkpoint
from ssl_selmix.training.engine import update_teacher
from tests.helpers.golden import (
    Given,
    Vectors,
    assert_reproduces,
    cases,
    linear,
    part,
    read,
    task_of,
)

RECORDED = read("cpe.npz")
STEPS = ("step.K10", "step.K3", "step.K10.none", "step.K10.lambda")
GROUPS = "HMT"
NAMES = ("same", "uniform", "inverted")


def test_every_recorded_case_is_compared() -> None:
    assert cases(RECORDED) == {*STEPS, "traj.K3"}


def replaying(given: Vectors, net: Classifier) -> CPE:
    """The method with the settings of a recorded run."""
    k = len(given["labeled_counts"])
    same, uniform, inverted = given["tau"].tolist()
    config = CPE.Config(
        steps=10,
        threshold=float(given["threshold"]),
        lambda_u=float(given["lambda_u"]),
        tau_same=same,
        tau_uniform=uniform,
        tau_inverted=inverted,
        medium_from=int(given["cut1"]) / k,
        tail_from=int(given["cut2"]) / k,
    )
    return CPE(net, task_of(given["labeled_counts"]), config)


def on_vectors(k: int) -> Classifier:
    return Classifier(nn.Identity(), nn.Linear(k, k))


def step_of(cpe: CPE, given: Vectors, step: int) -> Vectors:
    """One step on recorded logits: all that was recorded of it."""
    rows = [[given[f"logits_{g}{e}"][step] for g in GROUPS] for e in (1, 2, 3)]
    z = torch.stack([torch.stack(row) for row in rows]).requires_grad_()
    num, pool = int(given["B"]), int(given["B"]) * int(given["mu"])
    x, weak, strong = z.split([num, pool, pool], dim=2)
    found, logs = cpe.objective(x, weak, strong, given["y"][step])
    loss = torch.stack(list(found.values())).sum()
    loss.backward()
    assert isinstance(z.grad, Tensor)
    got: Vectors = {"loss": loss}
    for e, name in enumerate(NAMES):
        guesses = cpe.guess(weak[e].detach().mean(0))
        place = e + 1
        got |= {
            f"sup{place}": found[f"labeled_{name}"],
            f"unsup{place}": found[f"unlabeled_{name}"] / cpe.config.lambda_u,
            f"pseudo{place}": guesses.classes,
            f"confidence{place}": guesses.confidence,
            f"mask{place}": guesses.weights[0],
        }
        torch.testing.assert_close(logs[f"mask_rate_{name}"], guesses.weights[0].mean())
        got |= {f"weight_{g}{place}": w for g, w in zip(GROUPS, guesses.weights, strict=True)}
        got |= {f"grad_{g}{place}": d for g, d in zip(GROUPS, z.grad[e], strict=True)}
    return got


@pytest.mark.parametrize("case", STEPS)
def test_steps_equal_the_published_code(case: str) -> None:
    given = part(RECORDED, case, "in")
    cpe = replaying(given, on_vectors(len(given["labeled_counts"])))
    got = [step_of(cpe, given, step) for step in range(len(given["y"]))]
    stacked = {name: torch.stack([step[name].detach() for step in got]) for name in got[0]}
    assert_reproduces(RECORDED, case, stacked)


def recorded_network(given: Vectors) -> CPE:
    """The tiny network of the recorded trajectory, in float64."""
    body = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    first, second, third = (
        linear(given[f"init_classifier{n}_weight"], given[f"init_classifier{n}_bias"])
        for n in ("", 2, 3)
    )
    cpe = replaying(given, Classifier(body, first)).double()
    cpe.uniform, cpe.inverted = second, third
    with torch.no_grad():
        conv = body[0]
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        conv.weight.copy_(given["init_conv1_weight"])
        conv.bias.copy_(given["init_conv1_bias"])
        for place, g in enumerate(GROUPS):
            cpe.norms.weight[place].copy_(given[f"init_BN{g}_weight"])
            cpe.norms.bias[place].copy_(given[f"init_BN{g}_bias"])
            assert torch.equal(given[f"init_BN{g}_running_mean"], cpe.norms.running_mean)
            assert torch.equal(given[f"init_BN{g}_running_var"], cpe.norms.running_var)
    return cpe


def state_of(cpe: CPE, who: str) -> Vectors:
    """All numbers of the network, by the names of the published code."""
    state = cpe.state_dict()
    heads = {"classifier": "net.classifier", "classifier2": "uniform", "classifier3": "inverted"}
    names = {f"{new}_{p}": f"{old}.{p}" for new, old in heads.items() for p in ("weight", "bias")}
    names |= {f"conv1_{p}": f"net.backbone.0.{p}" for p in ("weight", "bias")}
    for place, g in enumerate(GROUPS):
        names |= {f"BN{g}_{p}": f"norms.{p}.{place}" for p in ("weight", "bias")}
        names |= {f"BN{g}_{p}": f"norms.{p}" for p in ("running_mean", "running_var")}
    return {f"{who}_{name}": state[key].clone() for name, key in names.items()}


# torch's norms count batches for a momentum that falls with them; this one has a fixed momentum.
COUNTERS = [f"{who}_BN{g}_num_batches_tracked" for who in ("model", "ema") for g in GROUPS]


def test_a_trajectory_equals_the_published_code() -> None:
    given = part(RECORDED, "traj.K3", "in")
    cpe = recorded_network(given).train()
    teacher = copy.deepcopy(cpe).requires_grad_(False)
    lr, momentum = float(given["lr"]), float(given["momentum"])
    decay = float(given["weight_decay"])
    optimizer = torch.optim.SGD(cpe.param_groups(), lr, momentum, nesterov=True, weight_decay=decay)
    rows: list[Vectors] = []
    masks: list[Tensor] = []
    guess = cpe.guess

    def noted(logits_w: Tensor) -> Guesses:
        found = guess(logits_w)
        masks.append(found.weights[0])
        return found

    cpe.guess = noted  # type: ignore[method-assign]
    for step in range(len(given["y"])):
        x, u_w, u_s = (given[name][step].double() for name in ("x", "u_w", "u_s"))
        batch = Batch(x, given["y"][step], Given([u_w, u_s]), torch.arange(len(u_w)))
        found, _ = cpe(batch, Context(step, 10, teacher))
        loss = torch.stack(list(found.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_teacher(teacher, cpe, float(given["ema_decay"]))
        row = {"loss": loss.detach()} | state_of(cpe, "model") | state_of(teacher, "ema")
        rows.append(row | {f"mask{e + 1}": mask for e, mask in enumerate(masks[-3:])})
    got = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    assert_reproduces(RECORDED, "traj.K3", got | predictions(given, cpe, teacher), without=COUNTERS)


def predictions(given: Vectors, cpe: CPE, teacher: CPE) -> Vectors:
    """Logits of all experts of the live network, and what the averaged one predicts."""
    images, y = given["test_x"].double(), given["test_y"]
    got: Vectors = {}
    with torch.no_grad():
        z = cpe.eval().logits(cpe.net.features(images))
    for e, suffix in enumerate(("", "2", "3")):
        got[f"live_logits_{suffix}" if suffix else "live_logits"] = z[e].mean(0)
        got |= {f"live_logits{g}{suffix}": z[e, place] for place, g in enumerate(GROUPS)}
    logits = teacher(images)
    torch.testing.assert_close(cpe(images), z[1].mean(0))  # what the head folds
    predicted = logits.argmax(1)
    confusion = confusion_matrix(y, predicted, 3)
    recall = confusion.diagonal() / confusion.sum(1)
    got |= {"test_logits": logits, "test_pred": predicted}
    return got | {"test_top1": confusion.diagonal().sum(), "test_balanced": recall.mean()}


# By hand.


def test_the_norms_are_torchs_batch_norms_of_the_map() -> None:
    torch.manual_seed(0)
    net = subjects.make_net(subjects.make_data()[0])
    cpe = CPE(net, task_of(torch.tensor([9.0, 3.0, 1.0])), CPE.Config()).train()
    body = net.backbone
    assert isinstance(body, nn.Sequential) and isinstance(body[-2], MapMoments)
    norm = nn.BatchNorm2d(8)
    for p, q in zip(cpe.norms.parameters(), range(6), strict=True):
        nn.init.normal_(p, mean=1.0 + q)
    with torch.no_grad():
        norm.weight.copy_(cpe.norms.weight[1])
        norm.bias.copy_(cpe.norms.bias[1])
    x = torch.rand(5, 1, 8, 8)
    maps = body[:-2](x)
    expected = norm(maps).mean((2, 3))
    found = cpe.norms(body[-1](body[-2](maps)), body[-2].positions)[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cpe.norms.running_var, norm.running_var)
    torch.testing.assert_close(cpe.norms.running_mean, norm.running_mean)
    net.backbone.eval()  # a body that stays as it is shows no map: it counts as one pixel
    assert net.features(x).shape == (5, 8)
    vectors = nn.BatchNorm1d(8)(net.features(x))
    plain = CPE(on_vectors(8), task_of(torch.ones(8)), CPE.Config()).norms
    torch.testing.assert_close(plain(net.features(x))[0], vectors, rtol=1e-4, atol=1e-5)


def test_a_later_stage_begins_with_the_predictions_of_the_one_before() -> None:
    net = subjects.make_net(subjects.make_data()[0]).eval()
    x = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        before = net(x)
    cpe = CPE(net, task_of(torch.tensor([9.0, 3.0, 1.0])), CPE.Config())
    torch.testing.assert_close(cpe(x), before, rtol=1e-4, atol=1e-4)
    assert type(cpe.export().backbone[-2]) is nn.AdaptiveAvgPool2d  # type: ignore[index]


def test_groups_are_those_of_the_labeled_counts() -> None:
    task = Task(tuple("abcde"), torch.tensor([5.0, 100.0, 0.0, 50.0, 9.0]).double(), 10, 10)
    cpe = CPE(on_vectors(5), task, CPE.Config())
    everyone, medium, tail = cpe.member.bool().tolist()
    assert everyone == [True] * 5
    assert medium == [True, False, True, True, True]
    assert tail == [True, False, True, False, True]
    with pytest.raises(ValueError, match=r"tail_from must be at least medium_from=0.5, not 0.4"):
        CPE.Config(medium_from=0.5)


def test_norms_and_biases_have_no_weight_decay() -> None:
    cpe = CPE(on_vectors(3), task_of(torch.ones(3)), CPE.Config())
    decayed = {id(p) for group in cpe.param_groups()[:1] for p in group["params"]}
    assert decayed == {id(h.weight) for h in (cpe.net.classifier, cpe.uniform, cpe.inverted)}


def of_groups(counts: list[float], **settings: object) -> CPE:
    """The method on the contract's network, with statistics of the groups' own images."""
    net = subjects.make_net(subjects.make_data()[0])
    config = CPE.Config(statistics="group", **settings)  # type: ignore[arg-type]
    return CPE(net, task_of(torch.tensor(counts)), config).train()


def test_group_statistics_are_those_of_torchs_norm_on_the_groups_images_alone() -> None:
    torch.manual_seed(0)
    cpe = of_groups([9.0, 3.0, 1.0])
    body = cpe.net.backbone
    assert isinstance(body, nn.Sequential)
    maps = body[:-2](torch.rand(5, 1, 8, 8)).detach().requires_grad_()
    rows = [torch.arange(5), torch.tensor([1, 2, 4]), torch.tensor([0, 3])]
    members = torch.zeros(3, 5)
    found = torch.zeros(3, 5, 8)
    norms = [nn.BatchNorm2d(8) for _ in GROUPS]
    for place, (norm, own) in enumerate(zip(norms, rows, strict=True)):
        members[place, own] = 1
        norm(maps[own])  # takes up the running statistics of its own images
        mean = maps[own].mean((0, 2, 3), keepdim=True)
        variance = ((maps[own] - mean) ** 2).mean((0, 2, 3), keepdim=True)
        found[place] = ((maps - mean) / (variance + 1e-5).sqrt()).mean((2, 3))
    expected = torch.autograd.grad(found.pow(3).sum(), maps)[0]
    got = cpe.norms(body[-1](body[-2](maps)), body[-2].positions, members)
    torch.testing.assert_close(got, found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(got.pow(3).sum(), maps)[0], expected, rtol=1e-3, atol=1e-4
    )
    for name, buffer in cpe.norms.named_buffers():
        torch.testing.assert_close(buffer, torch.stack([getattr(norm, name) for norm in norms]))


@pytest.mark.parametrize("alone", [0, 1])
def test_a_group_with_no_or_one_image_is_normalised_by_what_is_remembered(alone: int) -> None:
    norms = of_groups([9.0, 3.0, 1.0]).norms
    norms.running_mean.fill_(0.5)
    norms.running_var.fill_(4.0)
    features = torch.rand(6, 8, requires_grad=True)
    members = torch.ones(3, 6)
    members[2, alone:] = 0
    found = norms(features, members=members)
    torch.testing.assert_close(found[2], (features - 0.5) / (4 + 1e-5) ** 0.5)
    assert (norms.running_mean[2] == 0.5).all() and (norms.running_var[2] == 4).all()
    assert (norms.running_mean[:2] != 0.5).all() and (norms.running_var[:2] != 4).all()
    found.sum().backward()
    assert isinstance(features.grad, Tensor) and features.grad.isfinite().all()


def test_images_belong_to_the_groups_of_their_labels_and_of_sure_pseudo_labels() -> None:
    config = CPE.Config(statistics="group", medium_from=1 / 3, tail_from=2 / 3, threshold=0.9)
    cpe = CPE(on_vectors(3), task_of(torch.tensor([9.0, 3.0, 1.0])), config).train()
    with torch.no_grad():
        cpe.uniform.weight.copy_(torch.eye(3))
        cpe.uniform.bias.zero_()
    weak = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [0.0, 0.0, 1.0]])
    found = cpe.members(weak, torch.tensor([0, 2]))
    pool = [[1, 1, 1], [1, 1, 0], [0, 1, 0]]  # the last image is not sure: it may be of any class
    labeled = [[1, 1], [0, 1], [0, 1]]
    assert found.tolist() == [x + u + u for x, u in zip(labeled, pool, strict=True)]


def test_group_statistics_fold_into_one_linear_layer() -> None:
    torch.manual_seed(0)
    cpe = of_groups([9.0, 3.0, 1.0]).double()
    for tensor in (*cpe.norms.parameters(), *cpe.norms.buffers()):
        nn.init.uniform_(tensor, 0.5, 2.0)
    cpe.eval()
    x = torch.rand(7, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = cpe.logits(cpe.net.features(x))[1].mean(0)
        torch.testing.assert_close(cpe(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(cpe.export()(x), expected, rtol=1e-12, atol=1e-12)
        alike = cpe.norms(cpe.net.features(x))
    assert not torch.equal(alike[0] * cpe.norms.weight[1], alike[1] * cpe.norms.weight[0])


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_gradients, life.check_state, life.check_resume])
def test_group_statistics_keep_the_contract(check: reporting.Check, tmp_path: Path) -> None:
    check(contract.subject("cpe", statistics="group", threshold=0.38), tmp_path)


def test_group_statistics_need_groups_that_differ_and_are_not_empty() -> None:
    for settings, words in (
        ({"medium_from": 0.0, "tail_from": 0.0}, "all groups have all classes; set tail_from abo"),
        ({"tail_from": 0.7}, r"tail_from=0.7 leaves the tail none of 3; set it to at most 0.666"),
    ):
        with pytest.raises(ValueError, match=words):
            of_groups([9.0, 3.0, 1.0], **settings)
    assert of_groups([9.0, 3.0, 1.0], tail_from=0.666).member.sum(1).tolist() == [3, 2, 1]


@pytest.mark.slow
def test_selmix_and_offsets_start_from_the_folded_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--algo", "cpe", "--then", "selmix", "--then", "posthoc", "cpe.steps=60", "cpe.lr=0.1"]
    words += ["cpe.ema=0.9", "cpe.evaluate_every=30", "selmix.steps=10", "model.name=cnn-8"]
    assert cli.main([*words, "cpe.threshold=0.5", "pictures=false", "--out", "run"]) == 0
    results = json.loads(Path("run/results.json").read_text())
    assert results["stages"][0]["head"] == "uniform"
    kept = checkpoint.load(Path("run/1-cpe/best.pt"))["teacher"]
    handed_on = checkpoint.load(Path("run/1-cpe/model.pt"))["teacher"]
    assert "norms.weight.0" in kept and not any(key.startswith("norms") for key in handed_on)
    assert not torch.equal(handed_on["net.classifier.weight"], kept["uniform.weight"])
    first = json.loads(Path("run/2-selmix/metrics.jsonl").read_text().partition("\n")[0])
    assert first["per_class_recall"] == results["stages"][0]["validation"]["per_class_recall"]
