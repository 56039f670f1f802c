"""docs/howto/extending.md and the method in examples/: all blocks and commands are executed."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_selmix import algorithm, cli, contract
from ssl_selmix.algorithm import Batch, Context
from ssl_selmix.contract import subjects

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "extending.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.S | re.M)
FILE = re.compile(r"# (\S+\.py)\n")  # first line of a block that belongs into a file
EXAMPLE = ROOT / "examples" / "mean_teacher.py"


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
            exec(compile(text, "docs/howto/extending.md", "exec"), {})
        else:
            assert language == "sh", f"the page has a block in {language!r}; say what to do with it"
            for line in text.splitlines():
                command, *words = shlex.split(line)
                assert command == "ssl-selmix"
                assert cli.main(short(words) if words[0] == "train" else words) == 0, line
                ran += 1
    assert ran >= 8 and {"my_method.py", "my_prior.py", "my_data.py", "my_objective.py"} <= written
    out = capsys.readouterr().out
    # The first one draws no unlabeled images, whose number could rise.
    skips = {"my_method (MyMethod)": 5, "my_prior (MyPrior)": 4, "mean_teacher (MeanTeacher)": 4}
    for method, num in skips.items():
        assert f"{method}: {len(contract.CHECKS) - num} passed, {num} skipped, " in out
    for line in (r"baseline: fixmatch \(classifier\) on", r"mine: my_method \(classifier\) on"):
        assert len(re.findall(line + r" \w{8}, mean recall 0\.\d{3}, worst class", out)) == 1
    assert f"in {len(EXAMPLE.read_text().splitlines())} lines" in PAGE
    assert len(set(re.findall(r"\) on (\w{8}),", out))) == 1


# Mean Teacher, by hand.


def make_example(**options: Any) -> Any:
    data, _ = subjects.make_data(2)
    kind = algorithm.load(str(EXAMPLE))[1]
    return kind(subjects.make_net(data), data.task, kind.Config(steps=100, batch=4, **options))


@pytest.mark.parametrize(
    ("step", "ramp", "share"), [(0, 0.2, -5.0), (10, 0.2, -1.25), (20, 0.2, 0.0), (0, 0.0, 0.0)]
)
def test_the_example_follows_the_teacher(step: int, ramp: float, share: float) -> None:
    """Features pass through: the teacher answers the weak view, the student the strong one."""
    method = make_example(ramp=ramp, weight=3.0)
    method.net.classifier = torch.nn.Identity()
    x, weak, strong = torch.tensor([[[1.0, 0.0]], [[1.0, 0.5]], [[0.3, 0.2]]]).requires_grad_()
    method.net.features = lambda images: torch.cat([x, weak, strong])
    image = torch.zeros(1, 1, 8, 8)
    batch = Batch(image, torch.tensor([1]), [image, image], torch.tensor([0]))  # type: ignore[arg-type]
    answer = torch.tensor([[2.0, -1.0]])
    teacher: Any = lambda images: answer  # noqa: E731
    found, logs = method(batch, Context(step, 100, teacher))
    expected = answer.softmax(1)
    torch.testing.assert_close(found["labeled"], torch.nn.functional.cross_entropy(x, batch.y))
    distance = (strong.softmax(1) - expected).square().sum() * 3 * math.exp(share)
    torch.testing.assert_close(found["consistency"], distance)
    torch.testing.assert_close(logs["teacher_confidence"], expected.max())
