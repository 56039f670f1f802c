"""Defaults in which shipped methods differ though their settings have one name, and why.

For `ssl-selmix list`, so that nothing heavy is imported; a test holds it against the methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ssl_selmix.common.arguments import section

REMIXMATCHES = ("remixmatch", "remixmatch_abc", "remixmatch_darp", "remixmatch_daso")
MIXING = ("cutmix", "mixup", "selmix")
OTHERS = ("the others",)  # of those that have the setting


class Default(NamedTuple):
    """A setting, its defaults by who has them, and why they are not one."""

    key: str
    values: Mapping[str, Sequence[str]]
    why: str


FIRST = (
    Default(
        "logit_adjustment",
        {"1": ("fixmatch", "selftrain", "supervised"), "0": OTHERS},
        "the SelMix paper's baseline has it, the papers of the others have a plain loss",
    ),
    Default(
        "mu",
        {"1": REMIXMATCHES, "2": OTHERS},
        "ReMixMatch passes several views of each unlabeled image",
    ),
    Default(
        "lambda_u",
        {"1.5": REMIXMATCHES, "2": ("remixmatch_cdmad",), "1": OTHERS},
        "as published",
    ),
    Default(
        "memory",
        {"0.9": ("simpro",), "0.99": OTHERS, "0.999": ("adello",)},
        "of an average over periods, and of others over steps",
    ),
    Default(
        "periods", {"86": ("simpro",), "500": OTHERS}, "500 steps of the published runs' lengths"
    ),
    Default("lambda_r", {"1": ("remixmatch_cdmad",), "0.5": OTHERS}, "as published"),
    Default("temperature", {"0.5": REMIXMATCHES, "1": OTHERS}, "ReMixMatch sharpens its guesses"),
    Default(
        "threshold", {"0": ("cdmad", "selftrain"), "0.95": OTHERS}, "as published: all images count"
    ),
    Default(
        "ramp", {"1": ("remixmatch_abc", "remixmatch_cdmad"), "0.015625": OTHERS}, "as published"
    ),
    Default(
        "schedule",
        {"constant": ("crest", "crest_plus"), "cosine_7_16": OTHERS},
        "within a generation, as in DASO's code",
    ),
    Default(
        "evaluate_every",
        {"100": ("csst",), "500": OTHERS},
        "CSST derives its gains anew at every validation",
    ),
)
SECOND = (
    Default(
        "lr",
        {"0.0003": MIXING, "0.01": ("weight_balancing",), "0.025": OTHERS},
        "a new classifier needs larger steps",
    ),
    Default("weight_decay", {"0.1": ("weight_balancing",), "0.0005": OTHERS}, "as published"),
    Default("body_lr", {"0.1": MIXING, "0": OTHERS}, "a new classifier is for frozen features"),
    Default(
        "batch_norm", {"batch": MIXING, "frozen": OTHERS}, "a new classifier is for frozen features"
    ),
    Default("momentum", {"0": MIXING, "0.9": OTHERS}, "as published"),
    Default("schedule", {"constant": ("selmix",), "cosine": OTHERS}, "as published"),
)


def listing() -> str:
    """What `ssl-selmix list` says of them, a line for each."""
    parts = {"first": FIRST, "second": SECOND}
    titles = {
        "first": "defaults that are not the same for all first stages (set them alike, such as "
        "flexmatch.logit_adjustment=1, where they are not the question)",
        "second": "and for all second stages",
    }
    return "\n\n".join(section(titles[part], _lines(found)) for part, found in parts.items())


def _lines(found: Sequence[Default]) -> dict[str, str]:
    told = {}
    for key, values, why in found:
        text = ", ".join(f"{value} ({', '.join(who)})" for value, who in values.items())
        told[key] = f"{text}: {why}"
    return told
