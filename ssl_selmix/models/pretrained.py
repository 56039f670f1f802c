"""Weights that a network starts from: a library's, or those of a file.

The library of the network decides what its images look like; see `Library` in `libraries`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ssl_selmix.models.backbones import Config
from ssl_selmix.models.libraries import LIBRARIES, RGB, Library, Weights

RESOLVED = ("size", "mean", "std", "interpolation")  # settings that the network decides
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
WRAPPERS = ("", "backbone.", "visual.", "model.", "encoder.")  # around a body in somebody's file


def asks_library(config: Config) -> bool:
    """Whether the library has the weights, and no file."""
    return config.pretrained.lower() == "true"


def _library(config: Config) -> tuple[Library, str]:
    library, _, name = config.name.partition(":")
    return LIBRARIES[library], name


def known(config: Config) -> Weights:
    """What the network's library knows of its weights.

    Raises:
        ValueError: the library is missing, or has no such weights.
    """
    library, name = _library(config)
    return library.weights(name)


def resolved(config: Config) -> Config:
    """The configuration with the network's own size, normalisation and interpolation.

    Raises:
        ValueError: a setting contradicts the library's weights.
    """
    spec = known(config).spec
    given: dict[str, Any] = {name: getattr(config, name) for name in RESOLVED[1:]}
    own: dict[str, Any] = {"mean": list(spec.mean), "std": list(spec.std)}
    own["interpolation"] = spec.interpolation
    found = {key: own[key] if value in ([], "auto") else value for key, value in given.items()}
    for key, value in found.items():
        if value != own[key] and asks_library(config):
            raise ValueError(
                f"model.{key}={_words(value)} contradicts {config.name}, whose weights have learnt "
                f"from {_words(own[key])}; leave it out, or give the file of other weights with "
                "model.pretrained=FILE"
            )
        if isinstance(value, list) and len(value) != RGB:
            raise ValueError(f"model.{key} must have a value for red, green and blue, not {value}")
    return dataclasses.replace(config, size=config.size or spec.size, **found)


def _words(value: object) -> str:
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)


def from_library(config: Config) -> dict[str, Tensor]:
    """The tensors of the body that the library has, perhaps from the internet.

    Raises:
        ValueError: they cannot be had; names the file to fetch.
    """
    library, name = _library(config)
    weights = library.weights(name)
    try:
        _check_reachable(weights)
        body = library.fetch(name, config.size)
    except ValueError:
        raise
    except Exception as error:  # each library has its own, and so has the network below it
        raise ValueError(
            f"the weights of {config.name} cannot be had here ({_reason(error)}); get "
            f"{weights.file} on a machine that can{_gate(error, weights)}, and give "
            "model.pretrained=FILE"
        ) from error
    return dict(body.state_dict())


def _check_reachable(weights: Weights) -> None:
    """Say at once that there is no network: the Hub's client tries for the better part of a minute.

    Raises:
        OSError: the Hub has no address here, and nothing of it is kept.
    """
    if weights.hub is None or any(os.environ.get(name) for name in OFFLINE):
        return
    from huggingface_hub import constants, try_to_load_from_cache

    kept = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
    if any(isinstance(try_to_load_from_cache(weights.hub, name), str) for name in kept):
        return
    host = re.sub(r"^\w+://|[:/].*$", "", constants.ENDPOINT)
    if not urllib.request.getproxies():
        socket.getaddrinfo(host, 443)


def _reason(error: Exception) -> str:
    gated = "Gated" in type(error).__name__ or "gated repo" in str(error)
    if gated:
        return "its repository asks for an agreement"
    if isinstance(error, socket.gaierror):
        return "no network"
    text = " ".join(str(error).split())
    return text[:120] or type(error).__name__


def _gate(error: Exception, weights: Weights) -> str:
    if "Gated" not in type(error).__name__ and "gated repo" not in str(error):
        return ""
    return f", after agreeing at https://huggingface.co/{weights.hub} and `hf auth login`"


def from_tensors(config: Config, tensors: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """The tensors of a file under the names of the body, of which none may be missing.

    Raises:
        ValueError: the file has another network.
    """
    library, name = _library(config)
    with torch.random.fork_rng([]):
        body = library.build(name, RGB, config.size).body
    wanted = body.state_dict()
    lacking: list[str] = []
    for found in _readings(library, body, tensors):
        lacks = _lacking(wanted, found)
        if not lacks:
            return _checked({k: found.get(k, v).to(v.dtype) for k, v in wanted.items()}, file)
        lacking = lacks if not lacking or len(lacks) < len(lacking) else lacking
    raise ValueError(
        f"{file} has other weights than {config.name} of {config.size} px: {lacking[0]} is missing "
        f"or has another shape, and so are {len(lacking) - 1} more of {len(wanted)} tensors; give "
        "the file of this network, or its model.name"
    )


def _readings(
    library: Library, body: nn.Module, tensors: Mapping[str, Tensor]
) -> Iterator[Mapping[str, Tensor]]:
    """The tensors under the names that a body may have in somebody's file."""
    for wrapper in WRAPPERS:
        inner = {k.removeprefix(wrapper): v for k, v in tensors.items() if k.startswith(wrapper)}
        if inner:
            yield inner
    try:
        yield library.convert(body, tensors)
    except Exception:  # converters of libraries take the files that they know for granted
        return


def _lacking(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    return [
        key
        for key, value in wanted.items()
        if (key not in found or found[key].shape != value.shape)
        and not key.endswith("num_batches_tracked")
    ]


def _checked(tensors: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    for key, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"{file} has NaN or inf in {key}; fetch it again")
    return tensors
