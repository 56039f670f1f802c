"""What published codes call the tensors of their Wide ResNets, and what they are called here."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

UNUSED = ""  # a tensor that has no effect on what its network computes

# Blocks as in kekmodel's FixMatch, ABC and codes made from either: block2.layer.0.conv1.
OF_FIXMATCH = re.compile(r"(?:.+\.)?block([123])\.layer\.(\d+)\.(\w+)\.(\w+)")
# Blocks as in DASO's code, where layers have numbers: unit2.0.layer.2.
OF_DASO = re.compile(r"(?:.+\.)?unit([123])\.(\d+)\.(pre_act\.0|identity|layer\.\d)\.(\w+)")
FIRST, LAST = ("conv1", "init_conv"), ("bn1", "unit4.0")  # before and behind all blocks
ACTIVATED = {"layer.0": "conv1", "layer.1": "bn2", "layer.3": "conv2"}  # after pre_act
PLAIN = {"layer.0": "bn1", "layer.2": "conv1", "layer.3": "bn2", "layer.5": "conv2"}


def names(tensors: Collection[str], wanted: Mapping[str, Any]) -> dict[str, str]:
    """Our names of the tensors of a published Wide ResNet, by theirs; of other files, none.

    The classifier is not among them. A norm that its block does not use is `UNUSED`.
    """
    blocks = sum(bool(re.fullmatch(r"backbone\.\d+\.conv1\.weight", key)) for key in wanted)
    if not blocks or not any(OF_FIXMATCH.fullmatch(k) or OF_DASO.fullmatch(k) for k in tensors):
        return {}
    found = {}
    for key in tensors:
        if place := _of_block(key, tensors, blocks // 3):
            found[key] = place if place in wanted or not place.partition(".bn1.")[1] else UNUSED
            continue
        module, _, kind = key.rpartition(".")
        for number, ends in ((0, FIRST), (blocks + 1, LAST)):
            if any(f".{module}".endswith(f".{end}") for end in ends):
                found[key] = f"backbone.{number}.{kind}"
    return found


def _of_block(key: str, tensors: Collection[str], blocks: int) -> str | None:
    """The name of a tensor of a block, of which each of three groups has so many."""
    if match := OF_FIXMATCH.fullmatch(key):
        group, block, module, kind = match.groups()
        module = "shortcut" if module == "convShortcut" else module
    elif match := OF_DASO.fullmatch(key):
        group, block, module, kind = match.groups()
        activated = key[: match.start(3)] + "pre_act.0.weight" in tensors
        numbers = ACTIVATED if activated else PLAIN
        module = {"pre_act.0": "bn1", "identity": "shortcut", **numbers}.get(module, module)
    else:
        return None
    return f"backbone.{1 + (int(group) - 1) * blocks + int(block)}.{module}.{kind}"
