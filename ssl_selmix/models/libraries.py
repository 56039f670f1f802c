"""Networks of other libraries: torchvision, timm, open_clip; and what is known of their weights.

Nothing here is asked of the internet but by `Library.fetch`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_selmix.common.names import unknown
from ssl_selmix.models.input import MODES, InputSpec

RGB = 3


class Built(NamedTuple):
    """A body without its classifier, and its number of features."""

    body: nn.Module
    num_features: int


@dataclass(frozen=True)
class Weights:
    """What a library knows of its weights of a network.

    spec: the images that they were trained on. file: what to fetch, and from where. licence: None
    if the library does not say. hub: repository of the Hugging Face Hub; None: another place.
    """

    spec: InputSpec
    file: str
    licence: str | None = None
    hub: str | None = None


@dataclass(frozen=True)
class Library:
    """How networks of a library are made, by the part of model.name after the colon.

    build: from name, channels of the images and their size (0: the network's own), untrained.
    weights: what is known of the weights of that name.
    fetch: a trained body, perhaps from the internet; raises whatever the library does.
    convert: tensors of a file under the names of this body, which the library knows to convert.
    """

    build: Callable[[str, int, int], Built]
    weights: Callable[[str], Weights]
    fetch: Callable[[str, int], nn.Module]
    convert: Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Tensor]]


def _as_they_are(body: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return tensors


def without_head(model: nn.Module, channels: int = RGB) -> Built:
    """The model with its last linear layer replaced by nothing, and that layer's input size."""
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linears or channels != RGB:
        raise ValueError("this model takes RGB images and ends in a linear layer; choose another")
    name, head = linears[-1]
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return Built(model, head.in_features)


def _torchvision(name: str, channels: int, size: int) -> Built:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise ValueError(f"torchvision has no model {name!r}; torchvision.models.list_models()")
    return without_head(get_model(name, weights=None), channels)


def _torchvision_weights(name: str) -> Weights:
    from torchvision.models import get_model_weights

    chosen = get_model_weights(name).DEFAULT
    how = chosen.transforms()
    try:
        spec = InputSpec(
            how.crop_size[0], tuple(how.mean), tuple(how.std), _mode(how.interpolation.value)
        )
    except AttributeError as error:  # a network for other things than classifying
        raise ValueError(
            f"torchvision's weights of {name} are not made for classifying images; choose another"
        ) from error
    return Weights(spec, f"{chosen.url} ({chosen})")


def _torchvision_fetch(name: str, size: int) -> nn.Module:
    from torchvision.models import get_model

    return without_head(get_model(name, weights="DEFAULT")).body


def _timm_module() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError("model.name=timm:... needs timm; pip install timm") from error
    return timm


def timm_sized(name: str, size: int) -> dict[str, Any]:
    """Networks whose positions are learnt are built for a size; all others take any."""
    config = _timm_module().models.get_pretrained_cfg(name)
    return {"img_size": size} if size and config and config.fixed_input_size else {}


def _timm_with(name: str) -> Any:
    """The library, which has a network of that name and, if it ends in a tag, such weights.

    Raises:
        ValueError: the library is missing, or has none.
    """
    timm = _timm_module()
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; timm.list_models() has the names")
    arch, _, tag = name.partition(".")
    if tag and name not in (tags := timm.list_pretrained(f"{arch}.*")):
        raise ValueError(unknown("weights of timm", name, tags))
    return timm


def _timm(name: str, channels: int, size: int) -> Built:
    timm = _timm_with(name)
    body = timm.create_model(name, num_classes=0, in_chans=channels, **timm_sized(name, size))
    # Some timm models widen their features just before the head.
    width = getattr(body, "head_hidden_size", None) or body.num_features
    return Built(body, int(width))


def _timm_weights(name: str) -> Weights:
    config = _timm_with(name).models.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise ValueError(f"timm has no weights of {name}; choose another network")
    spec = InputSpec(
        config.input_size[-1], config.mean, config.std, _mode(config.interpolation or "bicubic")
    )
    hub = config.hf_hub_id
    file = f"{config.hf_hub_filename or 'model.safetensors'} of https://huggingface.co/{hub}"
    return Weights(spec, file if hub else str(config.url), config.license, hub)


def _timm_fetch(name: str, size: int) -> nn.Module:
    made: nn.Module = _timm_module().create_model(
        name, pretrained=True, num_classes=0, **timm_sized(name, size)
    )
    return made


def _timm_convert(body: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """As timm reads the files of those who trained the network, and other image sizes."""
    module = sys.modules[type(body).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    return dict(convert(dict(tensors), body)) if convert is not None else tensors


def _open_clip_module() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(
            "model.name=open_clip:... needs open_clip; pip install 'ssl_selmix[open_clip]'"
        ) from error
    return open_clip


def _open_clip_name(name: str) -> tuple[str, str]:
    """Network and tag of its weights, the first one known unless NAME.TAG names it.

    Raises:
        ValueError: open_clip has no such network.
    """
    open_clip = _open_clip_module()
    arch, _, tag = name.partition(".")
    if arch not in open_clip.list_models():
        raise ValueError(unknown("network of open_clip", arch, open_clip.list_models()))
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if tag and tag not in tags:
        raise ValueError(unknown(f"tag of open_clip's {arch}", tag, tags))
    return arch, tag or next(iter(tags), "")


def _open_clip_body(name: str, size: int, **options: Any) -> nn.Module:
    sized = {"force_image_size": size} if size else {}
    model = _open_clip_module().create_model(name, **sized, **options)
    tower: nn.Module = model.visual
    return tower


def _open_clip(name: str, channels: int, size: int) -> Built:
    if channels != RGB:
        raise ValueError("open_clip's networks take RGB images; choose another network")
    body = _open_clip_body(_open_clip_name(name)[0], size, load_weights=False)
    with torch.no_grad(), torch.random.fork_rng([]):
        side = size or _pair(body.image_size)
        width = body.eval()(torch.zeros(1, RGB, side, side)).shape[1]
    return Built(body.train(), int(width))


def _pair(size: Any) -> int:
    return int(size[0] if isinstance(size, tuple | list) else size)


def _open_clip_weights(name: str) -> Weights:
    open_clip = _open_clip_module()
    arch, tag = _open_clip_name(name)
    if not tag:
        raise ValueError(f"open_clip has no weights of {arch}; choose another network")
    told = open_clip.pretrained.get_pretrained_cfg(arch, tag)
    size = _pair(open_clip.get_model_config(arch)["vision_cfg"].get("image_size", 224))
    spec = InputSpec(
        size,
        tuple(told.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        tuple(told.get("std") or open_clip.OPENAI_DATASET_STD),
        _mode(told.get("interpolation") or "bicubic"),
    )
    hub = str(told.get("hf_hub") or "").rstrip("/")
    file = f"open_clip_model.safetensors of https://huggingface.co/{hub}"
    return Weights(spec, file if hub else str(told.get("url")), None, hub or None)


def _open_clip_fetch(name: str, size: int) -> nn.Module:
    arch, tag = _open_clip_name(name)
    return _open_clip_body(arch, size, pretrained=tag)


def _open_clip_convert(body: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The image tower of a whole network."""
    tower = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    return tower or tensors


def _mode(word: str) -> str:
    """An interpolation by its name; what torch does not have in batches is nearly bicubic."""
    return word if word in MODES else "bicubic"


LIBRARIES = {
    "torchvision": Library(_torchvision, _torchvision_weights, _torchvision_fetch, _as_they_are),
    "timm": Library(_timm, _timm_weights, _timm_fetch, _timm_convert),
    "open_clip": Library(_open_clip, _open_clip_weights, _open_clip_fetch, _open_clip_convert),
}
