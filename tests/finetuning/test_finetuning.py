"""Fine-tuning of models from elsewhere: what comes back, what is left alone, what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ssl_selmix
from ssl_selmix import objectives
from ssl_selmix.decision import DecisionRule
from ssl_selmix.finetuning.finetune import bootstrap
from ssl_selmix.finetuning.surgery import split_classifier
from ssl_selmix.metrics import confusion_matrix

K = 3


def images(n: int, seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Classes 0, 1, 2 told apart by noisy brightness; class 2 is rare in training."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % K
    x = torch.randn(n, 3, size, size, generator=generator) + y[:, None, None, None]
    return x, y


def tail(n: int, seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    x, y = images(n, seed, size)
    keep = (y < 2) | (torch.arange(n) < 12)
    return x[keep], y[keep]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, K))


def trained() -> nn.Sequential:
    """A model that knows the head classes and hardly ever says 2."""
    net = network()
    x, y = tail(120, 1)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def run(model: nn.Module, **changes: Any) -> ssl_selmix.finetuning.finetune.Result:
    options: dict[str, Any] = {
        "labeled": tail(120, 1),
        "validation": images(90, 2),
        "steps": 40,
        "batch": 16,
        "evaluate_every": 20,
        "progress": False,
    }
    if changes.get("posthoc") == "only":
        options = {k: v for k, v in options.items() if k not in ("batch", "evaluate_every")}
    return ssl_selmix.finetune(model, **(options | changes))


def test_the_worst_class_gains_and_the_model_given_stays_as_it_was() -> None:
    model = trained()
    before = copy.deepcopy(model.state_dict())
    result = run(model, unlabeled=images(60, 3)[0], test=images(300, 4), steps=100)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert result.after["min_recall"] > result.before["min_recall"]
    assert result.interval[0] <= result.change <= result.interval[1]
    assert result.measured_on == "test"
    assert "worst class" in str(result)
    assert type(result.model) is type(model)
    assert result.model.training == model.training
    recall = recall_of_worst(result.model, *images(300, 4))
    assert recall == pytest.approx(result.after["min_recall"])
    assert recall_of_worst(model, *images(300, 4)) == pytest.approx(result.before["min_recall"])


def recall_of_worst(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        right = model.eval()(x).argmax(1) == y
    return min(float(right[y == k].float().mean()) for k in range(K))


def test_never_worse_than_the_start_on_validation() -> None:
    model = trained()
    result = run(model, lr=10.0, step="fixed")  # a rate that destroys the model
    assert result.measured_on == "validation"
    assert result.after["min_recall"] >= result.before["min_recall"]


def test_history_holds_gains_pairs_and_multipliers(tmp_path: Path) -> None:
    result = run(trained(), out=tmp_path)
    assert result.history[0]["step"] == 0
    for row in result.history:
        assert np.asarray(row["pair_distribution"]).sum() == pytest.approx(1)
        assert np.asarray(row["gain_matrix"]).shape == (K, K)
        assert sum(row["multipliers"]) == pytest.approx(1)
    assert (tmp_path / "last.pt").exists() and (tmp_path / "metrics.jsonl").exists()
    with pytest.raises(ValueError, match="not overwritten"):
        run(trained(), out=tmp_path)


@pytest.mark.slow
def test_arrays_and_datasets_give_what_tensors_give() -> None:
    class Set(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __init__(self, x: Tensor, y: Tensor) -> None:
            self.x, self.y = x, y

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return self.x[i], int(self.y[i])

    x, y = tail(120, 1)
    u = images(30, 3)
    first = run(trained(), unlabeled=u[0])
    second = run(
        trained(),
        labeled=Set(x, y),
        validation=(images(90, 2)[0].numpy(), images(90, 2)[1].numpy()),
        unlabeled=Set(u[0], torch.full_like(u[1], 99)),  # labels of the pool are not looked at
    )
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_any_function_and_constraints_are_objectives() -> None:
    model = trained()
    x, y = images(90, 2)
    with torch.no_grad():
        start = confusion_matrix(y, model.eval()(x).argmax(1), K)
    model.train()
    costs = 1 - torch.eye(K, dtype=torch.float64)
    bounded = objectives.get(
        objectives.recall_of(2), K, constraints=[objectives.precision_at_least(0, 0.99)]
    )
    for given in (objectives.macro_f1, bounded, objectives.cost_matrix(costs)):
        first = run(model, objective=given).history[0]
        expected = objectives.get(given, K)
        assert first["objective"] == pytest.approx(expected.metric(start))
        slacks = {f"slack_{name}": v for name, v in expected.constraints(start).items()}
        assert {k: v for k, v in first.items() if k.startswith("slack")} == pytest.approx(slacks)
    assert slacks == {} and len(bounded.constraints(start)) == 1


def test_augment_sees_training_batches_only() -> None:
    seen = []

    def augment(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    run(trained(), augment=augment)
    assert set(seen) == {16} and len(seen) == 80


@pytest.mark.slow
def test_torchvision_model() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model: Any = resnet18(num_classes=K)
    x = torch.randn(12, 3, 32, 32)
    y = torch.arange(12) % K
    result = run(model, labeled=(x, y), validation=(x, y), steps=2, batch=4)
    tuned: Any = result.model
    assert tuned.fc.out_features == K
    assert set(tuned.state_dict()) == set(model.state_dict())
    # Stored statistics are frozen while fine-tuning and work again afterwards.
    assert tuned.bn1.momentum == model.bn1.momentum


@pytest.mark.slow
def test_timm_model() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=K)
    x = torch.randn(12, 3, 32, 32)
    y = torch.arange(12) % K
    result = run(model, labeled=(x, y), validation=(x, y), steps=2, batch=4)
    tuned: Any = result.model
    assert tuned.get_classifier().out_features == K


def test_a_head_without_bias_stays_without() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(192, K, bias=False))
    tuned: Any = run(model, steps=20, lr=0.1, step="fixed").model
    assert tuned[1].bias is None and tuned.state_dict().keys() == model.state_dict().keys()
    model.load_state_dict(tuned.state_dict())


def test_split_classifier_names_the_layer() -> None:
    net = split_classifier(network(), "1")
    assert net.classifier.out_features == 16
    with pytest.raises(ValueError, match="unknown linear layer 'head'"):
        split_classifier(network(), "head")


def test_bootstrap_of_no_change_is_no_change() -> None:
    logits = torch.randn(60, K, generator=torch.Generator().manual_seed(0))
    change, (low, high) = bootstrap(
        objectives.get("mean_recall", K), logits, logits, torch.arange(60) % K
    )
    assert change == low == high == 0


def test_bootstrap_interval_of_a_known_change() -> None:
    labels = torch.arange(300) % K
    before = torch.nn.functional.one_hot((labels + (torch.arange(300) < 150)) % K, K).float()
    after = torch.nn.functional.one_hot(labels, K).float()
    change, (low, high) = bootstrap(objectives.get("mean_recall", K), before, after, labels)
    assert change == pytest.approx(0.5)
    # A binomial of 300 images with p = 1/2: two standard errors are 5.8 points.
    assert low == pytest.approx(0.442, abs=0.015)
    assert high == pytest.approx(0.558, abs=0.015)


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits.softmax(1)


class Diverged(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*network())
        with torch.no_grad():
            next(self.parameters()).fill_(torch.nan)


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, K, 8)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.conv(x)
        return maps.flatten(1)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (Convolutional(), {}, "no nn.Linear"),
        (Softmax(), {}, "after its last linear layer"),
        (Diverged(), {}, "the model gives NaN or inf"),
        (
            network(),
            {"labeled": (torch.full((4, 3, 8, 8), torch.nan), torch.arange(4) % K)},
            "has NaN",
        ),
        (network(), {"classifier": "1"}, "linear layer"),
        (network(), {"labeled": (torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))}, "0..2"),
        (network(), {"labeled": (torch.randn(4, 3, 8, 8), torch.tensor([0, 1]))}, "4 images"),
        (
            network(),
            {"validation": (torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))},
            r"\[2\]",
        ),
        (
            network(),
            {"test": (torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))},
            r"classes \[2\] have no test image",
        ),
        (network(), {"test": (torch.randn(2, 3, 8, 8), torch.tensor([1, 3]))}, "test labels run"),
        (network(), {"test": (torch.randn(0, 3, 8, 8), torch.tensor([]))}, "test is empty"),
        (network(), {"validation": torch.randn(4, 3, 8, 8)}, "needs labels"),
        (network(), {"labeled": iter([])}, "map-style"),
        (network(), {"leraning_rate": 1}, "unknown setting"),
        (network(), {"objective": "min_recal"}, "min_recall"),
        (network(), {"lr": -1.0}, "lr must be > 0"),
        (network(), {"lr": "fast"}, "lr must be a number, not 'fast'"),
        (network(), {"steps": 2.5}, "steps must be a whole number, not 2.5"),  # it never ended
        (network(), {"class_names": ["a"]}, "class_names"),
    ],
)
def test_what_cannot_be_done_is_refused(
    model: nn.Module, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(model, **changes)


@pytest.mark.slow
def test_the_notebook_runs_and_raises_the_worst_class(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "docs" / "howto" / "finetune.ipynb"
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    scope: dict[str, Any] = {}
    for cell in code:
        exec(compile(cell, str(path), "exec"), scope)
    result = scope["result"]
    assert result.after["min_recall"] > result.before["min_recall"]
    assert "95 % interval" in capsys.readouterr().out
    used = [line for cell in code[2:] for line in cell.splitlines() if line.strip()]
    assert len(used) < 30


@pytest.mark.slow
def test_options_of_a_named_objective_reach_it_and_its_tail_is_the_rare_class() -> None:
    low = run(trained(), step_size=3.0).history[0]["multipliers"]
    high = run(trained(), step_size=50.0).history[0]["multipliers"]
    assert max(low) < max(high)
    x, y = tail(120, 1)
    rare_first = (2 - y) % K  # now class 0 is rare
    flipped = run(network(), labeled=(x, rare_first), objective="min_ht_recall", steps=1)
    weights = flipped.history[0]["multipliers"]
    assert weights[1] == weights[2] != weights[0]  # head: 1 and 2
    with pytest.raises(ValueError, match="belongs to an objective given by name"):
        run(trained(), objective=objectives.macro_f1, step_size=3.0)


def test_the_callers_objective_generators_modes_and_frozen_layers_stay() -> None:
    model: Any = trained()
    model[1].requires_grad_(False)
    model.eval()
    model[0].train()
    objective = objectives.get("min_recall", K, beta=0.9)
    torch.manual_seed(7)
    before, state = torch.rand(1), torch.random.get_rng_state()
    result = run(model, objective=objective, lr=0.1, step="fixed", steps=5)
    assert torch.equal(torch.random.get_rng_state(), state) and before.numel() == 1
    assert objective.multipliers is not None
    assert torch.equal(objective.multipliers, torch.full((K,), 1 / K, dtype=torch.float64))
    tuned: Any = result.model
    assert torch.equal(tuned[1].weight, model[1].weight) and not tuned[1].weight.requires_grad
    assert [m.training for m in tuned] == [m.training for m in model] == [True, *[False] * 3]


def test_double_precision_models_are_fine_tuned_in_double() -> None:
    result = run(trained().double(), steps=2)
    assert all(p.dtype == torch.float64 for p in result.model.parameters())


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x)}


def test_what_is_no_tensor_of_logits_or_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor of logits N×K, not dict"):
        run(Dictionary())
    with pytest.raises(ValueError, match="images alone"):
        run(network(), unlabeled=images(6, 0))
    with pytest.raises(ValueError, match="pair"):
        run(network(), labeled=(images(2, 0)[0],))


def test_targets_that_a_transform_changes_are_read_one_by_one() -> None:
    class Shifted:
        def __init__(self) -> None:
            self.x, y = tail(120, 1)
            self.targets = (y + 5).tolist()
            self.target_transform = lambda y: y - 5

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return self.x[i], self.target_transform(self.targets[i])

    assert run(network(), labeled=Shifted(), steps=1).history


def test_offsets_alone_shift_the_bias_and_nothing_else(tmp_path: Path) -> None:
    model, held = trained(), images(90, 2)
    result = run(model, posthoc="only", objective="h_mean", test=images(300, 4), out=tmp_path / "o")
    with torch.no_grad():
        wanted = ssl_selmix.posthoc(model.eval()(held[0]), held[1], objective="h_mean")
    assert result.rule is not None and torch.allclose(result.rule.offsets, wanted.offsets)
    old, new = model.state_dict(), result.model.state_dict()
    assert torch.allclose(new.pop("3.bias"), (old["3.bias"] + wanted.offsets).float())
    assert all(torch.equal(new[key], old[key]) for key in new)
    assert result.history == [] and result.fine_tuned is None
    assert result.after["h_mean"] > result.before["h_mean"]
    saved = DecisionRule.load(tmp_path / "o" / "rule.npz")
    assert saved.cross_fitted["h_mean"] == pytest.approx(wanted.cross_fitted["h_mean"])
    with pytest.raises(ValueError, match="not overwritten"):
        run(model, posthoc="only", out=tmp_path / "o")


def test_offsets_after_training() -> None:
    model, test = trained(), images(300, 4)
    plain, both = run(model, test=test), run(model, test=test, posthoc=True)
    assert both.fine_tuned == plain.after and plain.rule is None and both.rule is not None
    shift = both.model.state_dict()["3.bias"] - plain.model.state_dict()["3.bias"]
    assert torch.allclose(shift, both.rule.offsets.float(), atol=1e-6)
    assert recall_of_worst(both.model, *test) == pytest.approx(both.after["min_recall"])
    # By its name the worst class has a floor under mean recall.
    assert any("Mean recall on the fitting images is kept" in note for note in both.rule.notes)


def test_the_table_has_what_training_has_to_beat(tmp_path: Path) -> None:
    model, test = trained(), images(300, 4)
    alone = run(model, test=test, posthoc="only", objective="h_mean")
    both = run(model, test=test, posthoc=True, objective="h_mean", out=tmp_path / "both")
    assert list(both.rows) == ["start", "posthoc", "SelMix", "SelMix, then posthoc"]
    assert both.rows["start"] == both.before and both.rows["SelMix"] == both.fine_tuned
    assert both.rows["SelMix, then posthoc"] == both.after
    assert both.rows["posthoc"] == alone.after == alone.rows["posthoc"]
    assert list(alone.rows) == ["start", "posthoc"] and list(run(model).rows) == ["start", "SelMix"]
    head, *lines = both.table().splitlines()
    assert head.split("   ")[0].startswith("percent") and "worst class" in head
    assert [line.partition("   ")[0].strip() for line in lines] == list(both.rows)
    assert f"{100 * both.after['h_mean']:.1f}" in lines[3]


def test_the_best_network_between_the_start_and_the_end() -> None:
    model, test = trained(), images(300, 4)
    plain, between = run(model, lr=0.05), run(model, lr=0.05, wise_ft=True)
    assert plain.alpha is None and between.alpha is not None and 0 <= between.alpha <= 1
    assert list(between.rows) == ["start", "SelMix", "SelMix, then WiSE-FT"]
    assert between.after["min_recall"] >= max(
        between.rows[name]["min_recall"] for name in ("start", "SelMix")
    )
    start, end, found = (m.state_dict() for m in (model, plain.model, between.model))
    assert any(not torch.equal(start[key], end[key]) for key in start)
    for key, value in found.items():
        assert torch.allclose(value, start[key].lerp(end[key], between.alpha), atol=1e-6)
    shifted = run(model, lr=0.05, wise_ft=True, posthoc=True, test=test)
    assert list(shifted.rows)[-1] == "SelMix, then WiSE-FT, then posthoc"
    assert shifted.fine_tuned == shifted.rows["SelMix, then WiSE-FT"]
    with pytest.raises(ValueError, match="wise_ft must be True or False, and False if"):
        run(model, wise_ft=True, posthoc="only")


def test_a_classifier_without_bias_gets_one_for_the_offsets() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, K, bias=False))
    result = run(model, posthoc="only", objective="mean_recall")
    assert result.rule is not None
    assert torch.allclose(result.model.state_dict()["1.bias"], result.rule.offsets.float())
    assert run(model, steps=10).model.state_dict().keys() == {"1.weight"}


def test_what_posthoc_refuses() -> None:
    for options, words in (
        ({"posthoc": "first"}, "posthoc must be True, False or 'only', not 'first'"),
        ({"posthoc": "only"}, "trains nothing, so batch means nothing"),
    ):
        with pytest.raises(ValueError, match=words):
            run(trained(), **{"batch": 16, **options})


def transformer() -> nn.Sequential:
    """Has a norm with statistics, a norm without, biases, and matrices."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.LayerNorm(8), nn.Linear(8, K),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tune", "learns"), [("head", {"6"}), ("norm", {"5", "6"}), ("bias", {"0", "5", "6"})]
)
def test_a_part_of_the_body_is_tuned(tune: str, learns: set[str]) -> None:
    model = transformer()
    result = run(model, tune=tune, posthoc=False, lr=0.1, keep="last", body_lr=1.0)
    before, after = model.state_dict(), result.model.state_dict()
    assert before.keys() == after.keys()
    changed = {key.partition(".")[0] for key in after if not torch.equal(before[key], after[key])}
    assert changed == learns  # batch norms keep weights and statistics
    flags = [p.requires_grad for p in result.model.parameters()]
    assert all(flags)  # as they came


def test_low_rank_updates_come_back_in_the_matrices() -> None:
    pytest.importorskip("peft")
    model = transformer()
    result = run(model, tune="lora", rank=2, lr=0.1, keep="last", body_lr=1.0)
    before, after = model.state_dict(), result.model.state_dict()
    assert before.keys() == after.keys()
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert changed == {"0.weight", "6.weight", "6.bias"}
    x = images(12, 5)[0]
    assert torch.isfinite(result.model.eval()(x)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": "adapter"}, "adds layers, which the returned model would lack"),
        ({"tune": "heads"}, "tune must be one of full, head"),
        ({"rank": 3}, "rank=3 needs tune=lora"),
        ({"tune": "lora", "wise_ft": True}, "on which low-rank updates do not lie"),
    ],
)
def test_tuning_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    if changes.get("tune") == "lora":
        pytest.importorskip("peft")
    with pytest.raises(ValueError, match=message):
        run(transformer(), **changes)
