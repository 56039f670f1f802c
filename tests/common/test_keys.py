"""What is said of a setting that no section of a run has."""

from __future__ import annotations

import pytest

from ssl_selmix.common.keys import unknown_key
from ssl_selmix.common.names import near, unknown

KNOWN = [
    *("seed", "device", "threads", "precision"),
    *("data.labeled.largest", "data.labeled.rho", "data.unlabeled.rho", "data.validation"),
    *("model.name", "views.lazy", "fixmatch.lr", "fixmatch.batch", "fixmatch.threshold"),
    *("fixmatch.steps", "fixmatch.mu"),
]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("lr", "did you mean fixmatch.lr?"),
        ("LR", "did you mean fixmatch.lr?"),
        ("Seed", "did you mean seed?"),
        ("fixmatch.LR", "did you mean fixmatch.lr?"),
        ("fixmtch.lr", "did you mean fixmatch.lr?"),
        ("fixmatch.stps", "did you mean fixmatch.steps?"),
        ("thresold", "did you mean fixmatch.threshold?"),
        ("rho", "did you mean data.labeled.rho or data.unlabeled.rho?"),
        ("labeled.rho", "did you mean data.labeled.rho?"),
        ("data.rho", "did you mean data.labeled.rho or data.unlabeled.rho?"),
        ("fixmatch.rho", "did you mean data.labeled.rho or data.unlabeled.rho?"),
        ("model.lr", "did you mean fixmatch.lr?"),
        ("model-name", "did you mean model.name?"),
        ("learning_rate", "did you mean fixmatch.lr?"),
        ("fixmatch.batch-size", "did you mean fixmatch.batch?"),
        ("epochs", "did you mean fixmatch.steps?"),
        ("uratio", "did you mean fixmatch.mu?"),
        ("network", "did you mean model.name?"),
        ("selmix.steps", "no stage of this run is selmix: add --then selmix"),
        ("Selmix.steps", "no stage of this run is selmix: add --then selmix, and set selmix.steps"),
        ("flexmach.lr", "no stage of this run is flexmatch: add --then flexmatch"),
        ("model.qqq", "known: model.name"),
        ("qqq", "known: data.labeled.largest, data.labeled.rho"),
    ],
)
def test_what_was_meant(key: str, said: str) -> None:
    told = unknown_key(key, KNOWN)
    assert told.startswith(f"unknown key {key!r}; {said}")


def test_names_are_compared_without_case_and_hyphens() -> None:
    assert near("Image-Folder", ["digits", "image_folder"]) == ["image_folder"]
    assert near("qqq", ["digits"]) == [] and near("", ["digits"]) == []
    assert unknown("preset", "DIGITS", ["digits", "digits"]).endswith("did you mean digits?")
