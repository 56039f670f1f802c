"""docs/extending.md and the method in examples/: every block and every command is executed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_selmix import algorithm, cli, contract
from ssl_selmix.algorithm import Batch, Context, Task
from ssl_selmix.contract import subjects
from ssl_selmix.training import checkpoint
from ssl_selmix.training.engine import predict

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.S | re.M)
FILE = re.compile(r"# (\S+\.py)\n")  # first line of a block that belongs into a file
ACR = ROOT / "examples" / "acr.py"


def short(words: list[str]) -> list[str]:
    """The command with a few steps, for the page says what a reader would run."""
    names = [words[i + 1] for i, word in enumerate(words) if word in ("--algo", "--then")]
    names = [Path(name).stem for name in names]
    tiny = [f"{n}.{setting}" for n in names for setting in ("steps=2", "batch=8")]
    return [*words, *tiny, "model.name=cnn-4", "pictures=false"]


@pytest.mark.slow
def test_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    ran, written = 0, set()
    for language, text in BLOCKS:
        file = FILE.match(text)
        if language == "python" and file and file[1].startswith("examples/"):
            body = text.partition("\n")[2]
            assert body in (ROOT / file[1]).read_text(), "the page shows another version"
        elif language == "python" and file:
            Path(file[1]).write_text(text)
            written.add(file[1])
        elif language == "python":
            exec(compile(text, "docs/extending.md", "exec"), {})
        else:
            assert language == "sh", f"the page has a block in {language!r}; say what to do with it"
            for line in text.splitlines():
                command, *words = shlex.split(line)
                assert command == "ssl-selmix"
                assert cli.main(short(words) if words[0] == "train" else words) == 0, line
                ran += 1
    assert ran >= 8 and {"my_method.py", "my_prior.py", "my_data.py", "my_objective.py"} <= written
    out = capsys.readouterr().out
    for method in ("my_method (MyMethod)", "my_prior (MyPrior)", "acr (ACR)"):
        assert f"{method}: {len(contract.CHECKS) - 1} passed, 1 skipped, " in out
    for line in (r"baseline: fixmatch \(classifier\) on", r"mine: my_method \(classifier\) on"):
        assert len(re.findall(line + r" \w{8}, mean recall 0\.\d{3}, worst class", out)) == 1
    assert f"in {len(ACR.read_text().splitlines())} lines" in PAGE
    assert len(set(re.findall(r"\) on (\w{8}),", out))) == 1


@pytest.mark.slow
def test_selmix_starts_from_the_head_that_acr_predicts_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--algo", str(ACR), "--then", "selmix", "acr.steps=60", "acr.ema=0.9", "acr.lr=0.1"]
    words += ["acr.evaluate_every=30", "selmix.steps=10", "model.name=cnn-8", "acr.threshold=0.5"]
    words += ["pictures=false"]
    assert cli.main([*words, "--out", "run"]) == 0
    results = json.loads(Path("run/results.json").read_text())
    assert [stage["head"] for stage in results["stages"]] == ["balanced", "classifier"]
    kept = checkpoint.load(Path("run/1-acr/best.pt"))["teacher"]
    handed_on = checkpoint.load(Path("run/1-acr/model.pt"))["teacher"]
    assert torch.equal(handed_on["net.classifier.weight"], kept["balanced.weight"])
    assert not torch.equal(kept["balanced.weight"], kept["net.classifier.weight"])
    first = json.loads(Path("run/2-selmix/metrics.jsonl").read_text().partition("\n")[0])
    assert first["step"] == 0 and first["kind"] == "validation"
    assert first["per_class_recall"] == results["stages"][0]["validation"]["per_class_recall"]
    assert results["stages"][0]["validation"]["mean_recall"] > 0.15  # of ten classes


# ACR, by hand.


def make_acr(counts: list[float], **options: Any) -> Any:
    data, _ = subjects.make_data(len(counts))
    kind = algorithm.load(str(ACR))[1]
    task = Task(tuple("abc"[: len(counts)]), torch.tensor(counts).double(), 10, 10)
    return kind(subjects.make_net(data), task, kind.Config(steps=100, batch=4, **options))


def test_acr_compares_the_pool_with_three_anchors() -> None:
    acr = make_acr([3.0, 6.0, 1.0], memory=0.0)
    torch.testing.assert_close(
        acr.anchors, torch.tensor([[0.3, 0.6, 0.1], [1 / 3] * 3, [0.3, 0.1, 0.6]])
    )
    taus = []
    for counts in ([3, 6, 1], [1, 1, 1], [3, 1, 6]):  # like the labeled images, uniform, reversed
        classes = torch.arange(3).repeat_interleave(torch.tensor(counts))
        acr.remember(classes, torch.ones(len(classes)))
        p, q = torch.tensor(counts).double() / sum(counts), acr.anchors.double()
        torch.testing.assert_close(acr.pool.double(), p, rtol=1e-6, atol=0)
        both = [((a * (a / p).log()).sum() + (p * (p / a).log()).sum()) / 2 for a in q]
        torch.testing.assert_close(
            acr.tau.double(), 2 * torch.stack(both).softmax(0)[0], rtol=1e-5, atol=0
        )
        taus.append(float(acr.tau))
    assert taus[0] < taus[1] < taus[2]
    acr.remember(torch.tensor([0, 1]), torch.zeros(2))  # none is confident: nothing is learnt
    assert float(acr.tau) == taus[2]


def test_acr_without_labels_of_a_class_has_a_finite_adjustment() -> None:
    acr = make_acr([8.0, 0.0, 2.0])
    torch.testing.assert_close(acr.anchors[0], torch.tensor([8.0, 1.0, 2.0]) / 11)


@pytest.mark.parametrize("balanced_sure", [True, False])
def test_acr_trains_both_heads_on_adjusted_guesses_of_the_standard_one(balanced_sure: bool) -> None:
    """Both heads are set by hand, features pass through: two classes, pi = (0.8, 0.2)."""
    acr = make_acr([8.0, 2.0], threshold=0.9, warmup=1.0)
    acr.net.classifier = torch.nn.Linear(2, 2, bias=False)
    acr.balanced = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        acr.net.classifier.weight.copy_(torch.eye(2))
        acr.balanced.weight.copy_(torch.eye(2) * (9.0 if balanced_sure else 0.1))
    x, weak, strong = torch.tensor([[[1.0, 0.0]], [[1.0, 0.5]], [[0.3, 0.2]]])
    acr.net.features = lambda images: torch.cat([x, weak, strong])
    image = torch.zeros(1, 1, 8, 8)
    batch = Batch(image, torch.tensor([1]), [image, image], torch.tensor([0]))  # type: ignore[arg-type]
    found, logs = acr(batch, Context(0, 100, acr))

    log_pi = torch.tensor([0.8, 0.2]).log()
    guess = (weak - 2.0 * log_pi).softmax(1)  # both adjustments are 2 in the warm-up
    assert guess.argmax() == 1 and guess.max() > 0.9 > weak.softmax(1).max()
    cross_entropy = torch.nn.functional.cross_entropy
    expected = {
        "labeled": cross_entropy(x, batch.y),
        "balanced": cross_entropy(acr.balanced(x) + 2.0 * log_pi, batch.y),
        "unlabeled": cross_entropy(strong, torch.tensor([1])),
        "unlabeled_balanced": cross_entropy(acr.balanced(strong), torch.tensor([1])),
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    assert float(logs["mask_rate"]) == float(balanced_sure)

    # A target that is not sure counts where the head's own prediction is: here the balanced one.
    assert guess.max() < 0.97 < acr.balanced(weak).softmax(1).max() or not balanced_sure
    acr.config.threshold = 0.97
    found, _ = acr(batch, Context(0, 100, acr))
    assert not found["unlabeled"].any()
    assert bool(found["unlabeled_balanced"].any()) == balanced_sure


def test_acr_predicts_with_the_balanced_head() -> None:
    acr = make_acr([8.0, 2.0])
    with torch.no_grad():
        acr.balanced.weight.neg_()
    data, _ = subjects.make_data(2)
    features, logits = predict(acr, data.plain(data.validation), len(data.validation))
    assert torch.equal(logits, acr.balanced(features))
    assert not torch.equal(logits, acr.net.classifier(features))
