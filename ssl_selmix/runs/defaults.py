"""Defaults in which shipped methods differ though their settings have one name, and why.

For `ssl-selmix list`, so that nothing heavy is imported; a test holds it against the methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ssl_selmix.common.alike import sentence
from ssl_selmix.common.arguments import section

PLAIN = (
    "abc",
    "cdmad",
    "crest",
    "crest_plus",
    "daso",
    "darp",
    "flexmatch",
    "freematch",
    "softmatch",
)
REMIXMATCHES = ("remixmatch", "remixmatch_abc", "remixmatch_darp", "remixmatch_daso")
MIXING = ("cutmix", "mixup", "selmix")
REBALANCING = ("balanced_subsampling", "crt", "lws")
DEBIASED = ("remixmatch_cdmad",)


class Default(NamedTuple):
    """A setting, its defaults by who has them, and why they are not one."""

    key: str
    values: Mapping[str, Sequence[str]]
    why: str


FIRST = (
    Default(
        "logit_adjustment",
        {"1": ("fixmatch", "selftrain", "supervised"), "0": PLAIN},
        "the SelMix paper's baseline has it, the papers of the others have a plain loss",
    ),
    Default(
        "mu",
        {"1": REMIXMATCHES, "2": ("fixmatch", *PLAIN, "csst", "selftrain", *DEBIASED)},
        "ReMixMatch passes several views of each unlabeled image",
    ),
    Default(
        "lambda_u",
        {"1.5": REMIXMATCHES, "2": DEBIASED, "1": ("fixmatch", *PLAIN, "csst", "selftrain")},
        "as published",
    ),
    Default(
        "temperature",
        {"0.5": REMIXMATCHES, "1": ("fixmatch", *PLAIN, *DEBIASED)},
        "ReMixMatch sharpens its guesses, with CDMAD it does not",
    ),
    Default(
        "threshold",
        {
            "0": ("cdmad", "selftrain"),
            "0.95": ("fixmatch", "remixmatch_abc", *(n for n in PLAIN if n != "cdmad")),
        },
        "every image counts with its soft target",
    ),
    Default(
        "debias_from", {"0.337": DEBIASED, "0.202": ("cdmad",)}, "101 epochs of 300 and of 500"
    ),
    Default("lambda_r", {"1": DEBIASED, "0.5": REMIXMATCHES}, "as published"),
    Default(
        "warmup",
        {"0.25": ("selftrain",), "0.02": ("daso", "remixmatch_daso")},
        "the share of the steps before heads vote, and before blended pseudo-labels",
    ),
    Default(
        "ramp",
        {"1": ("remixmatch_abc", *DEBIASED), "0.015625": ("remixmatch", *REMIXMATCHES[2:])},
        "as published",
    ),
    Default(
        "schedule",
        {"constant": ("crest", "crest_plus"), "cosine_7_16": ("the others",)},
        "within a generation, as in DASO's code",
    ),
    Default(
        "evaluate_every",
        {"100": ("csst",), "500": ("the others",)},
        "CSST derives its gains anew at every validation",
    ),
)
SECOND = (
    Default("lr", {"0.0003": MIXING, "0.025": REBALANCING}, "a new classifier needs larger steps"),
    Default(
        "batch_norm",
        {"frozen": ("balanced_subsampling",), "batch": MIXING},
        "the body stays as it is, or learns",
    ),
    Default("body_lr", {"0": ("balanced_subsampling",), "0.1": MIXING}, "likewise"),
    Default("momentum", {"0": MIXING, "0.9": REBALANCING}, "as published"),
    Default(
        "schedule",
        {"constant": ("selmix",), "cosine": ("cutmix", "mixup", *REBALANCING)},
        "as published",
    ),
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
        text = sentence({key: {value: list(who) for value, who in values.items()}})
        told[key] = f"{text.removeprefix(key).strip()}: {why}"
    return told
