"""Weights of other libraries and of files: their names, their images, and what is refused."""

from __future__ import annotations

import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix import models
from ssl_selmix.models import Config, libraries, pretrained
from ssl_selmix.models.input import InputSpec, ToSize
from ssl_selmix.runs.pretrained import Pretrained
from ssl_selmix.runs.weights import of_file

timm = pytest.importorskip("timm")
PLACES = [p / "shared/data/tf_efficientnet_lite0.pth" for p in Path(__file__).resolve().parents]
REAL = next((place for place in PLACES if place.exists()), PLACES[-1])
RESNET, VIT = "timm:test_resnet", "timm:test_vit"


def with_classes(name: str = "test_resnet") -> nn.Module:
    """A network as its library saves it: with a classifier of its own."""
    torch.manual_seed(5)
    made: nn.Module = timm.create_model(name, num_classes=7)
    return made


def body_of(config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return pretrained.from_tensors(config, tensors, "FILE")


@pytest.mark.parametrize("wrapper", ["", "backbone.", "visual."])
def test_a_file_gives_the_body_its_weights_in_single_precision(wrapper: str) -> None:
    saved = {f"{wrapper}{k}": v.half() for k, v in with_classes().state_dict().items()}
    net = models.build(Config(RESNET, pretrained="FILE", size=32), 3, 3)
    found = body_of(Config(RESNET, pretrained="FILE", size=32), saved)
    assert found.keys() == net.backbone.state_dict().keys()
    for key, value in found.items():
        assert value.dtype == net.backbone.state_dict()[key].dtype
        assert torch.equal(value, saved[f"{wrapper}{key}"].to(value.dtype))


def test_positions_of_a_transformer_are_brought_to_another_size() -> None:
    saved = with_classes("test_vit").state_dict()
    config = Config(VIT, pretrained="FILE", size=64)
    found = body_of(config, saved)
    net = models.build(config, 3, 3)
    net.backbone.load_state_dict(found)
    assert found["pos_embed"].shape == (1, 17, saved["pos_embed"].shape[2])
    assert torch.equal(found["blocks.0.attn.qkv.weight"], saved["blocks.0.attn.qkv.weight"])
    assert net(torch.zeros(2, 3, 20, 20)).shape == (2, 3)


def test_a_file_of_another_network_is_refused_with_what_is_missing() -> None:
    saved = with_classes("test_vit").state_dict()
    with pytest.raises(ValueError, match=r"FILE has other weights than timm:test_resnet of 32 px"):
        body_of(Config(RESNET, pretrained="FILE", size=32), saved)


def test_a_file_with_nan_is_refused() -> None:
    saved = with_classes().state_dict()
    saved["bn1.weight"] = torch.full_like(saved["bn1.weight"], torch.nan)
    with pytest.raises(ValueError, match=r"FILE has NaN or inf in bn1.weight; fetch it again"):
        body_of(Config(RESNET, pretrained="FILE", size=32), saved)


def test_safetensors_are_read_and_what_is_none_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    saved = {f"module.{k}": v for k, v in with_classes().state_dict().items()}
    save_file(saved, tmp_path / "w.safetensors")
    assert of_file(tmp_path / "w.safetensors").keys() == with_classes().state_dict().keys()
    (tmp_path / "x.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"x\.safetensors cannot be read as weights \("):
        of_file(tmp_path / "x.safetensors")


@pytest.mark.skipif(not REAL.exists(), reason="needs shared/data/tf_efficientnet_lite0.pth")
def test_real_weights_tell_a_photograph_from_noise() -> None:
    """Trained features have seen edges: they change less with noise than random ones do."""
    config = pretrained.resolved(Config("timm:tf_efficientnet_lite0", pretrained=str(REAL)))
    assert (config.size, config.mean, config.interpolation) == (224, [0.5] * 3, "bicubic")
    net = models.build(config, 10, 3).eval()
    start = Pretrained(config)
    start.into(net)
    assert torch.equal(net.backbone.state_dict()["bn1.weight"], of_file(REAL)["bn1.weight"].float())
    assert start.plain()["licence"] == "apache-2.0"
    assert net.features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280)


def test_the_network_says_what_its_images_are() -> None:
    found = pretrained.resolved(Config(VIT, pretrained="true"))
    assert (found.size, found.interpolation) == (160, "bicubic")
    assert found.mean == [0.5] * 3 and found.std == [0.5] * 3
    found = pretrained.resolved(Config("torchvision:resnet18", pretrained="true", size=96))
    assert (found.size, found.interpolation) == (96, "bilinear")
    assert found.mean == [0.485, 0.456, 0.406] and found.std == [0.229, 0.224, 0.225]


def test_a_tag_names_weights() -> None:
    assert pretrained.known(Config(f"{VIT}.r160_in1k", pretrained="true")).hub == (
        "timm/test_vit.r160_in1k"
    )
    with pytest.raises(ValueError, match=r"test_vit.r160_in1k"):  # the nearest is named
        pretrained.known(Config(f"{VIT}.r160_in2k", pretrained="true"))


def test_a_setting_that_contradicts_the_weights_is_refused() -> None:
    given: dict[str, Any] = {"mean": [0.4, 0.4, 0.4]}
    with pytest.raises(ValueError, match=r"model\.mean=0\.4, 0\.4, 0\.4 contradicts timm:test_vit"):
        pretrained.resolved(Config(VIT, pretrained="true", **given))
    # Of a file somebody may know better.
    assert pretrained.resolved(Config(VIT, pretrained="FILE", **given)).mean == [0.4] * 3
    with pytest.raises(ValueError, match=r"model\.mean must have a value for red, green and blue"):
        pretrained.resolved(Config(VIT, pretrained="FILE", mean=[0.5]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cnn-4", "pretrained": "true"}, "pretrained=true needs a network of torchvision"),
        ({"mean": [0.5] * 3}, "mean is that of pre-trained networks"),
        ({"name": VIT, "pretrained": "F", "std": [1.0, 0.0, 1.0]}, "std must be > 0"),
        ({"interpolation": "bicubic"}, "interpolation=bicubic enlarges nothing; set size"),
        ({"interpolation": "lanczos"}, "interpolation must be one of auto, bilinear"),
        ({"rank": 4}, "rank=4 needs tune=lora or tune=adapter"),
        ({"tune": "head", "scale": 2.0}, "scale=2.0 needs tune=lora or tune=adapter"),
        ({"tune": "head", "layer_decay": 0.5}, "layer_decay needs layers that learn"),
        ({"tune": "prompt"}, "tune must be one of full, head, lora"),
        ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], not 0.0"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def nobody(*args: Any, **options: Any) -> Any:
    raise socket.gaierror(-2, "Name or service not known")


def test_without_a_network_the_file_to_fetch_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    for name in pretrained.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    told = (
        r"the weights of timm:test_vit cannot be had here \(no network\); get model.safetensors of "
        r"https://huggingface.co/timm/test_vit.r160_in1k on a machine that can, and give "
        r"model.pretrained=FILE"
    )
    with pytest.raises(ValueError, match=told):
        pretrained.from_library(Config(VIT, pretrained="true", size=160))


class GatedRepoError(OSError):
    """As the Hub's client raises it."""


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            VIT,
            GatedRepoError("401"),
            r"asks for an agreement.*agreeing at https://hugg.*hf auth log",
        ),
        (
            "torchvision:resnet18",
            urllib.error.URLError(OSError("no route")),
            r"no route.*get https://download.pytorch.org/models/resnet18-\w+.pth",
        ),
    ],
)
def test_what_cannot_be_fetched_is_told_in_one_sentence(
    name: str, error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*args: Any) -> nn.Module:
        raise error

    library = name.partition(":")[0]
    changed = {**libraries.LIBRARIES[library].__dict__, "fetch": fetch}
    monkeypatch.setitem(libraries.LIBRARIES, library, libraries.Library(**changed))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message) as caught:
        pretrained.from_library(Config(name, pretrained="true", size=160))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named_with_what_to_fetch() -> None:
    with pytest.raises(
        ValueError, match=r"model\.pretrained=gone\.pth is no file; get model\.safe"
    ):
        _ = Pretrained(Config(VIT, pretrained="gone.pth", size=160)).sha256


@pytest.mark.parametrize(
    ("package", "name", "remedy"),
    [
        ("timm", VIT, "pip install timm"),
        ("open_clip", "open_clip:ViT-B-32", r"pip install 'ssl_selmix\[open_clip\]'"),
    ],
)
def test_a_library_that_is_missing_is_told(
    package: str, name: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=remedy):
        pretrained.resolved(Config(name, pretrained="true"))
    with pytest.raises(ValueError, match=remedy):
        models.build(Config(name), 3, 3)


def test_safetensors_that_are_missing_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "w.safetensors").touch()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match="needs safetensors; pip install safetensors"):
        of_file(tmp_path / "w.safetensors")


def test_images_are_enlarged_and_grey_ones_shown_as_colours() -> None:
    x = torch.randn(2, 1, 8, 8)
    found = ToSize(20, "bicubic", 3)(x)
    expected = F.interpolate(x, (20, 20), mode="bicubic", align_corners=False)
    assert torch.allclose(found, expected.expand(2, 3, 20, 20))
    assert ToSize(8, "bilinear", 1)(x) is x
    assert torch.equal(
        ToSize(16, "nearest", 1)(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )


def test_networks_of_any_kind_can_be_shown_larger_images() -> None:
    torch.manual_seed(0)
    net = models.build(Config("cnn-4", size=16), 3, 1).eval()
    torch.manual_seed(0)
    plain = models.build(Config("cnn-4"), 3, 1).eval()
    x = torch.randn(2, 1, 8, 8)
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(net(x), plain(F.interpolate(x, (16, 16), mode="bilinear")))


def test_a_spec_says_what_it_is() -> None:
    spec = InputSpec(224, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic")
    assert str(spec) == "224 px, bicubic, mean 0.5, 0.5, 0.5, std 0.25, 0.25, 0.25"


@pytest.mark.slow  # its import takes seconds
def test_image_towers_of_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    name = "open_clip:ViT-S-32-alt"
    found = pretrained.known(Config("open_clip:ViT-B-32.laion2b_s34b_b79k", pretrained="true"))
    assert found.hub == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K" and found.spec.size == 224
    assert found.spec.mean == open_clip.OPENAI_DATASET_MEAN
    config = Config(name, pretrained="FILE", size=64)
    net = models.build(config, 3, 3)
    tower = {f"visual.{k}": v for k, v in net.backbone.state_dict().items()}
    tensors = tower | {"text.token_embedding.weight": torch.zeros(2, 2)}
    assert (
        pretrained.from_tensors(config, tensors, "FILE").keys() == net.backbone.state_dict().keys()
    )
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(ValueError, match="tag of open_clip"):
        pretrained.known(Config("open_clip:ViT-B-32.laion3b", pretrained="true"))
