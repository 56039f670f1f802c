"""TRAS against recorded steps of the published code, and when its second head takes over."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_selmix import cli, losses
from ssl_selmix.algorithm import Batch, Context
from ssl_selmix.algorithms.tras import TRAS
from ssl_selmix.contract import subjects
from ssl_selmix.data.batch import Task
from ssl_selmix.models import Classifier
from ssl_selmix.training import checkpoint
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

RECORDED = read("tras.npz")
RUNS = ("K10.steps", "K3.steps", "K10.A1_B3_rho0.5", "K3.unpatched_batch64")
LAYERS = {"enc": "net.backbone", "fc": "net.classifier", "fc2": "auxiliary"}
VIEWS = ("x", "u_weak", "u_s1", "u_s2")
EPOCHS = 500  # of the published runs, for the warm-up's share


def test_every_recorded_case_is_compared() -> None:
    assert cases(RECORDED) == {*RUNS, "kl", "drop_last_prior"}


def replaying(given: Vectors) -> TRAS:
    """The method with the settings and the networks of a recorded run."""
    body = nn.Linear(6, 6, bias=False)
    body.weight.data.copy_(given["enc_weight"])
    config = TRAS.Config(
        steps=EPOCHS,
        threshold=float(given["threshold"]),
        prior_power=float(given["rho"]),
        transfer_scale=float(given["A"]),
        transfer_base=float(given["B"]),
        warmup=(int(given["warmup_last_epoch"]) + 1) / EPOCHS,
    )
    net = Classifier(body, linear(given["fc_weight"], given["fc_bias"]))
    algorithm = TRAS(net, task_of(given["labeled_counts"]), config)
    algorithm.auxiliary = linear(given["fc2_weight"], given["fc2_bias"])
    return algorithm


def weights_of(algorithm: TRAS) -> Vectors:
    """Weights by their recorded names."""
    state = algorithm.state_dict()
    found = {
        f"{name}_{kind}": state[f"{module}.{kind}"].clone()
        for name, module in LAYERS.items()
        for kind in ("weight", "bias")
        if f"{module}.{kind}" in state
    }
    return found


def step_of(algorithm: TRAS, given: Vectors, step: int) -> Vectors:
    """All that was recorded of a step, but for weights."""
    blocks = [given[name][step] for name in VIEWS]
    num, k = len(blocks[1]), len(given["fc_bias"])
    batch = Batch(blocks[0], given["y"][step], Given(blocks[1:]), torch.arange(num))
    heads = (algorithm.net.classifier, algorithm.auxiliary)
    noted: tuple[list[Tensor], list[Tensor]] = ([], [])

    def hooked(out: list[Tensor]) -> Any:
        def note(module: nn.Module, _: Any, logits: Tensor) -> None:
            if logits.requires_grad:
                logits.retain_grad()
                out.append(logits)

        return note

    handles = [
        head.register_forward_hook(hooked(out)) for head, out in zip(heads, noted, strict=True)
    ]
    with torch.no_grad():
        h = algorithm.net.backbone(blocks[1])
        p = (heads[0](h) - algorithm.log_pi).softmax(1)
        own = heads[1](h)
    ctx = Context(int(given["epochs"][step]), EPOCHS, algorithm)
    found, logs = algorithm(batch, ctx)
    for handle in handles:
        handle.remove()
    loss = torch.stack(list(found.values())).sum()
    loss.backward()
    starts = ctx.progress >= algorithm.config.warmup
    pseudo, mask = losses.pseudo_label(p, algorithm.config.threshold)
    taken, sure = algorithm.choose(own)
    torch.testing.assert_close(logs["mask_rate"], mask.mean())
    zero = torch.zeros(())
    got: Vectors = {"Lx": found["labeled"], "Lu": found["unlabeled"], "loss": loss}
    got |= {"pseudo_probs": p, "pseudo": pseudo, "mask": mask}
    got |= {"aux_loss_x": found.get("balanced", zero), "aux_loss_u": found.get("distilled", zero)}
    got |= {"aux_pseudo": taken * starts, "aux_mask": sure * starts}
    sizes = [len(blocks[0]), num, num]
    for name, logits in zip(("main", "aux"), noted, strict=True):
        grads = [out.grad for out in sorted(logits, key=len) if out.grad is not None]
        rows = torch.cat(grads) if grads else torch.zeros(sum(sizes), k)
        names = (f"grad_{name}_{view}" for view in ("x", "s1", "s2"))
        got |= dict(zip(names, rows.split(sizes), strict=True))
    with torch.no_grad():
        strong = heads[0](algorithm.net.backbone(torch.cat(blocks[2:])))
    teacher = strong - algorithm.transfer[taken.repeat(2)][:, None] * algorithm.log_pi
    temperature = algorithm.config.teacher_temperature
    if starts:
        evened = algorithm.evened(strong, taken.repeat(2))
        torch.testing.assert_close(evened, (teacher / temperature).softmax(1))
    return got | {"teacher_logits": teacher * starts}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_equals_the_published_code(case: str) -> None:
    given = part(RECORDED, case, "in")
    algorithm = replaying(given)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=float(given["lr"]))
    mean = weights_of(algorithm)
    rows: list[Vectors] = []
    for step in range(len(given["epochs"])):
        optimizer.zero_grad()
        got = step_of(algorithm, given, step)
        optimizer.step()
        for name, now in weights_of(algorithm).items():
            mean[name] = mean[name].lerp(now, 1 - float(given["ema"]))
        for parameter in algorithm.parameters():
            parameter.data.mul_(float(given["shrink"]))
        live = {f"net_{name}": value for name, value in weights_of(algorithm).items()}
        rows.append({**got, **live, **{f"avg_{name}": value for name, value in mean.items()}})
    stacked = {name: torch.stack([row[name].detach() for row in rows]) for name in rows[0]}
    average = replaying(given | mean)
    average.started.fill_(True)
    stacked |= {"la": algorithm.log_pi, "T": algorithm.transfer}
    stacked["test_logits"] = average(given["x_test"])
    assert torch.equal(average.export()(given["x_test"]), average(given["x_test"]))
    assert_reproduces(RECORDED, case, stacked)


def test_what_is_learned_from_a_teacher() -> None:
    given = part(RECORDED, "kl", "in")
    logits = given["logits"].clone().requires_grad_()
    targets = (given["teacher"] / TRAS.Config().teacher_temperature).softmax(1)
    loss = losses.masked_cross_entropy(logits, targets, given["mask"])
    loss.backward()
    assert_reproduces(RECORDED, "kl", {"loss": loss, "grad": logits.grad})  # type: ignore[dict-item]


def test_the_published_prior_misses_the_last_batch_and_ours_does_not() -> None:
    given = part(RECORDED, "drop_last_prior", "in")
    labels, size = given["labels"], int(given["batch"])
    used = len(labels) // size * size
    shares = [torch.bincount(part, minlength=10).double() for part in (labels[:used], labels)]
    got = losses.log_power(shares[0] / shares[0].sum(), 1.0)
    assert_reproduces(RECORDED, "drop_last_prior", {"la": got, "used": torch.tensor(used)})
    assert not torch.allclose(got, losses.log_power(shares[1] / shares[1].sum(), 1.0), atol=1e-3)


# By hand.


def make(counts: list[float], **options: Any) -> TRAS:
    data, _ = subjects.make_data(len(counts))
    task = Task(tuple("abc"[: len(counts)]), torch.tensor(counts).double(), 10, 10)
    return TRAS(subjects.make_net(data), task, TRAS.Config(steps=1000, batch=4, **options))


def test_rare_classes_are_corrected_more() -> None:
    algorithm = make([6.0, 3.0, 1.0])
    inverse = 1 / torch.tensor([6.0, 3.0, 1.0])
    torch.testing.assert_close(algorithm.transfer, 2 + 2 * inverse / inverse.sum())
    targets = algorithm.evened(torch.zeros(2, 3), torch.tensor([0, 2]))
    assert float(targets[1, 2]) > float(targets[0, 2]) > 1 / 3
    lacking = make([6.0, 0.0, 1.0])
    assert float(lacking.log_pi[1]) == pytest.approx(float(torch.tensor(1 / 8).log()))


@pytest.mark.parametrize(("steps", "first"), [(250_000, 5500), (1000, 22)])
def test_the_second_head_learns_after_the_published_warm_up(steps: int, first: int) -> None:
    algorithm = make([6.0, 3.0, 1.0])
    data, _ = subjects.make_data()
    batch = next(algorithm.batches(data, 0))
    x = batch.x
    for step, started in ((first - 1, False), (first, True)):
        losses, logs = algorithm(batch, Context(step, steps, algorithm))
        assert ("distilled" in losses) == ("distilled_rate" in logs) == started
        assert bool(algorithm.started) == started
        head = algorithm.auxiliary if started else algorithm.net.classifier
        assert algorithm.head_name == ("auxiliary" if started else "classifier")
        algorithm.eval()
        assert torch.equal(algorithm.predict(x), head(algorithm.net.features(x)))
        assert torch.equal(algorithm.export().eval()(x), algorithm.predict(x))
        algorithm.train()


@pytest.mark.slow
def test_selmix_and_offsets_start_from_the_second_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--algo", "tras", "tras.steps=20", "tras.ema=0.9", "tras.lr=0.1", "tras.batch=16"]
    words += ["tras.keep=last", "--then", "selmix", "selmix.steps=4", "--then", "posthoc"]
    assert cli.main([*words, "model.name=cnn-8", "pictures=false", "--out", "run"]) == 0
    results = json.loads(Path("run/results.json").read_text())
    assert [stage["head"] for stage in results["stages"]][:2] == ["auxiliary", "classifier"]
    kept = checkpoint.load(Path("run/1-tras/last.pt"))["teacher"]
    handed_on = checkpoint.load(Path("run/1-tras/model.pt"))["teacher"]
    assert torch.equal(handed_on["net.classifier.weight"], kept["auxiliary.weight"])
    first = json.loads(Path("run/2-selmix/metrics.jsonl").read_text().partition("\n")[0])
    assert first["per_class_recall"] == results["stages"][0]["validation"]["per_class_recall"]
