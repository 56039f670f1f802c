"""A frozen body: features once, the same result as with images at every step."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import ssl_selmix
from tests.finetuning.test_finetuning import K, images, tail, trained


class Body(nn.Module):
    """Counts the images that pass it, over all copies of it."""

    seen: ClassVar[list[int]] = []

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        Body.seen.append(len(x))
        features: Tensor = self.norm(self.layers(x))
        return features


def model() -> nn.Sequential:
    *body, head = trained()
    return nn.Sequential(Body(nn.Sequential(*body)), head)


def run(net: nn.Module, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "labeled": tail(120, 1),
        "validation": images(90, 2),
        "unlabeled": images(60, 3)[0],
        "test": images(99, 4),
        "steps": 20,
        "batch": 16,
        "evaluate_every": 10,
        "progress": False,
    }
    return ssl_selmix.finetune(net, **(options | changes))


def difference(one: Any, other: Any) -> float:
    """Of the logits of images, relative to the largest."""
    x = images(60, 7)[0]
    with torch.no_grad():
        found, expected = one.model.eval()(x), other.model.eval()(x)
    return float((found - expected).abs().max() / expected.abs().max())


def test_features_give_what_images_give() -> None:
    net, more = model(), {"posthoc": True, "wise_ft": True, "lr": 0.1}
    slow = run(net, tune="head", augment=lambda x: x, keep="last", **more)  # images at every step
    fast = run(net, body="frozen", keep="last", **more)
    assert difference(fast, slow) <= 1e-5
    assert fast.after["per_class_recall"] == slow.after["per_class_recall"]
    assert fast.rows.keys() == slow.rows.keys()
    assert fast.model.state_dict().keys() == net.state_dict().keys()


def test_every_image_passes_the_body_once() -> None:
    net = model()
    Body.seen.clear()
    parts = len(tail(120, 1)[0]) + 90 + 60 + 99
    for asked in ({"body": "frozen"}, {"tune": "head"}):
        Body.seen.clear()
        run(net, steps=30, **asked)
        assert sum(Body.seen) == parts + 2  # and one by which model and classifier are compared


def test_the_folder_and_the_file_have_the_whole_model(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=K).eval()
    sized = {
        "labeled": tail(60, 1, 32), "validation": images(60, 2, 32), "test": images(60, 4, 32),
        "unlabeled": images(30, 3, 32)[0],
    }  # fmt: skip
    result = run(net, body="frozen", steps=4, keep="last", out=tmp_path / "tuned", **sized)
    x = images(12, 7, 32)[0]
    opened = ssl_selmix.load(tmp_path / "tuned")
    with torch.no_grad():
        expected = result.model.eval()(x)
        assert torch.allclose(opened.eval()(x), expected, atol=1e-5)
    assert not torch.equal(result.model.state_dict()["fc.weight"], net.fc.weight)  # it learned
    body = {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    assert all(torch.equal(v, result.model.state_dict()[k]) for k, v in body.items())


def test_the_speed_is_told_and_a_program_takes_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(trained(), body="frozen", steps=1, progress=True)
    assert "features: 333 of 333 images, " in capsys.readouterr().out
    program = torch.export.load(result.export(tmp_path / "tuned.pt2")).module()
    x = images(12, 7)[0]
    with torch.no_grad():
        assert torch.allclose(program(x), result.model.eval()(x), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"body": "cold"}, "body must be one of trained, frozen, not 'cold'"),
        ({"body": "frozen", "tune": "bias"}, "tune='bias' trains a part of it; leave out one"),
        ({"body": "frozen", "augment": lambda x: x}, "sees each image once; leave augment out"),
    ],
)
def test_what_a_frozen_body_cannot_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(model(), **changes)
