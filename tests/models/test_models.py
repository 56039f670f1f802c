"""Networks: sizes of the published ones, features and classifier, names; joint forward passes."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_selmix.algorithm import Batch
from ssl_selmix.data import Data
from ssl_selmix.methods.views import joint_logits
from ssl_selmix.models import Classifier, Config, backbones, build, libraries
from ssl_selmix.models.classifier import num_parameters
from ssl_selmix.training.machine import flops_per_step


def count(net: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in net.modules())


def images(num: int, channels: int = 3, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num, channels, size, size, generator=generator)


@pytest.fixture(scope="module")
def wrn() -> Classifier:
    torch.manual_seed(0)
    return build(Config(), 10, 3)


def test_wrn_28_2_is_the_published_network(wrn: Classifier) -> None:
    assert num_parameters(wrn) == 1_467_610
    assert num_parameters(build(Config("wrn-28-2"), 100, 3)) == 1_479_220
    assert (count(wrn, nn.Conv2d), count(wrn, nn.BatchNorm2d), count(wrn, nn.Linear)) == (28, 25, 1)
    assert wrn.classifier.in_features == 128


def test_resnets_of_small_images() -> None:
    """torchvision's but for the first convolution, and 4×4 positions are left of 32×32 pixels."""
    torch.manual_seed(0)
    net, large = build(Config("resnet-18"), 10, 3), build(Config("torchvision:resnet18"), 10, 3)
    assert num_parameters(large) - num_parameters(net) == 64 * 3 * (7 * 7 - 3 * 3)
    left: list[Tensor] = []
    deep: Any = net.body
    body = next(m for m in deep.modules() if hasattr(m, "layer4"))
    body.layer4.register_forward_hook(lambda m, given, made: left.append(made))
    assert net(images(2)).shape == (2, 10) and left[0].shape == (2, 512, 4, 4)
    assert build(Config("resnet-50"), 127, 1).classifier.in_features == 2048
    with pytest.raises(ValueError, match=r"resnet-20 does not exist; use resnet-18, resnet-34"):
        build(Config("resnet-20"), 10, 3)


@pytest.mark.parametrize("size", [32, 33, 96])
def test_any_image_size_gives_a_row_per_image(wrn: Classifier, size: int) -> None:
    assert wrn(images(2, size=size)).shape == (2, 10)


@pytest.mark.parametrize("name", ["wrn-10-1", "cnn-4"])
@pytest.mark.parametrize("channels", [1, 3])
def test_features_and_classifier_make_the_logits(name: str, channels: int) -> None:
    net = build(Config(name), 5, channels).eval()
    x = images(3, channels, size=8)
    features = net.features(x)
    assert features.shape == (3, net.classifier.in_features)
    assert torch.equal(net(x), net.classifier(features))


def test_one_image_keeps_its_batch_dimension() -> None:
    net = build(Config("wrn-10-1"), 5, 1).eval()
    assert net(images(1, 1, 8)).shape == (1, 5)
    assert net.features(images(0, 1, 8)).shape == (0, 64)


def test_blocks_that_change_width_activate_their_shortcut() -> None:
    torch.manual_seed(0)
    backbone: Any = backbones.wide_resnet(10, 1)[0].eval()
    x = images(2)[:, :1].expand(-1, 16, -1, -1)
    keeps, changes = backbone[1], backbone[2]
    for block in (keeps, changes):
        activated = F.leaky_relu(block.bn1(x), 0.1)
        inner = F.leaky_relu(block.bn2(block.conv1(activated)), 0.1)
        skip = x if block is keeps else block.shortcut(activated)
        torch.testing.assert_close(block(x.clone()), block.conv2(inner) + skip)
    assert keeps.shortcut is None


def test_a_forward_pass_does_not_change_its_input() -> None:
    for name in ("wrn-10-1", "cnn-4"):
        x = images(2)
        build(Config(name), 5, 3)(x)
        assert torch.equal(x, images(2))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    net = build(Config("wrn-28-2"), 10, 3)
    last = [m for m in net.modules() if isinstance(m, nn.Conv2d)][-1]
    assert float(last.weight.detach().std()) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert not net.classifier.bias.any()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(bool((m.weight == 1).all()) and not m.bias.any() for m in norms)


def test_initial_weights_come_from_the_global_seed() -> None:
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(build(Config("cnn-4"), 3, 1).classifier.weight)
    assert torch.equal(nets[0], nets[1]) and not torch.equal(nets[0], nets[2])


@pytest.mark.parametrize("name", ["wrn-10-1", "cnn-4"])
def test_momentum_of_batch_statistics(name: str) -> None:
    net = build(Config(name, bn_momentum=0.001), 5, 3)
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.001}


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5])
def test_momentum_out_of_range(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"bn_momentum must be in \(0, 1\]"):
        Config(bn_momentum=momentum)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "'resnet50' is unknown; use wrn-DEPTH-WIDTH"),
        ("", "is unknown"),
        ("wrn-28", "is unknown"),
        ("cnn-32x", "is unknown"),
        ("wrn-27-2", "6n.4.*wrn-27-2"),
        ("wrn-4-2", "6n.4"),
        ("wrn-28-0", "width >= 1"),
        ("cnn-0", "positive width"),
        ("jax:resnet", "is unknown"),
        ("torchvision:resnet19", "torchvision has no model 'resnet19'"),
        ("torchvision:", "torchvision has no model"),
    ],
)
def test_unknown_names_say_what_is_known(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Config(name), 10, 3)


def test_torchvision_model() -> None:
    net = build(Config("torchvision:resnet18", bn_momentum=0.01), 7, 3).eval()
    x = images(2)
    assert (net.features(x).shape, net(x).shape) == ((2, 512), (2, 7))
    assert count(net, nn.Linear) == 1
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}


def test_torchvision_model_refuses_grey_images() -> None:
    with pytest.raises(ValueError, match="RGB"):
        build(Config("torchvision:resnet18"), 7, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_timm_model(channels: int) -> None:
    pytest.importorskip("timm")
    net = build(Config("timm:test_resnet"), 7, channels).eval()
    x = images(2, channels)
    assert net(x).shape == (2, 7)
    assert torch.equal(net(x), net.classifier(net.features(x)))


def test_unknown_timm_model() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="timm has no model 'resnet19'"):
        build(Config("timm:resnet19"), 7, 3)


class Nested(nn.Module):
    """A model whose last linear layer lies in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.0), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


def test_without_head_replaces_the_last_linear_layer() -> None:
    model = Nested()
    whole = copy.deepcopy(model)
    backbone, num_features = libraries.without_head(model)
    assert num_features == 6
    x = images(3, 3, 2)
    assert backbone(x).shape == (3, 6)
    assert torch.equal(whole.head(backbone(x)), whole(x))


def test_without_head_needs_a_linear_layer() -> None:
    with pytest.raises(ValueError, match="linear layer"):
        libraries.without_head(nn.Conv2d(3, 3, 1))


# One forward pass for all views.


def test_joint_logits_share_batch_statistics_and_keep_the_order(tiny_data: Data) -> None:
    torch.manual_seed(0)
    net = build(Config("cnn-4"), 3, 1)
    other = copy.deepcopy(net)
    batch = next(tiny_data.batches(("weak", "strong"), 4, 2, 0))
    logits = joint_logits(net, batch)
    assert [tuple(part.shape) for part in logits] == [(4, 3), (8, 3), (8, 3)]
    together = other(torch.cat([batch.x, batch.u[0], batch.u[1]]))
    torch.testing.assert_close(torch.cat(logits), together)
    norm, expected = net.backbone.get_submodule("1"), other.backbone.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d) and int(norm.get_buffer("num_batches_tracked")) == 1
    assert torch.equal(norm.get_buffer("running_mean"), expected.get_buffer("running_mean"))


def test_joint_logits_without_views(tiny_data: Data) -> None:
    net = build(Config("cnn-4"), 3, 1)
    batch: Batch = next(tiny_data.batches((), 4, 2, 0))
    (logits,) = joint_logits(net, batch)
    assert logits.shape == (4, 3)


def test_an_early_stride_makes_the_other_convolutions_four_times_cheaper() -> None:
    plain, early = (build(Config(name), 10, 3) for name in ("wrn-10-2", "wrn-10-2-s2"))
    assert num_parameters(plain) == num_parameters(early)
    flops = [flops_per_step(net, (3, 32, 32), 1) for net in (plain, early)]
    assert flops[0] / flops[1] == pytest.approx(4, rel=1e-3)
