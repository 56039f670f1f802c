"""The file that says which images a split has: written once, refused if it was changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ssl_selmix.common.atomic import write_atomically
from ssl_selmix.common.paths import expanded
from ssl_selmix.splits import PARTS, Counts, LongTailSplit, Split

# Added to manifests of shape=all only, so that digests of older manifests stay valid.
_ALL = "shape all: the labeled images are all that the other parts leave; their tail is the data's"
_SHARE = "shape 0.1, say: this share of all images of every class, rounded to the nearest number"
_REST = "shape rest: the unlabeled images are all that the other parts leave"

_MEANING = {
    "N1": "rule.labeled.largest: number of labeled images of the largest class",
    "rho": "size of the largest class / size of the smallest class; with rho < 1 the tail is "
    "inverted and N1 or M1 is the size of class 0, the smallest",
    "reverse": "the class order of the counts is reversed: the last class is the largest",
    "shape": "which class gets which count: long_tail as N1, M1 and rho say; uniform: every class "
    "the largest count; inverted: the last class the largest; middle, head_tail: the largest "
    "counts in the middle, or at both ends; unknown: nothing is drawn, the data set's own images "
    "without labels are the unlabeled pool",
    "counts": "images per class of each part, class 0 first",
    "indices": "positions in the training images of the data set, class by class",
}


def content(split: Split, images_sha256: str | None = None, **extra: Any) -> dict[str, Any]:
    """Everything needed to repeat and to compare this split, ready for JSON."""
    indices = {part: getattr(split, part).tolist() for part in PARTS}
    manifest = {
        "num_classes": split.num_classes,
        "seed": split.seed,
        "rule": split.rule.settings(),
        "meaning": {"M1": _meaning_of_m1(split.rule), **_MEANING} | _later(split.rule),
        "counts": {part: list(counts) for part, counts in split.counts.items()},
        "images_sha256": images_sha256,
        "indices_sha256": _sha256_of_indices(indices),
        "indices": indices,
    }
    if taken := sorted(manifest.keys() & extra.keys()):
        raise ValueError(f"the manifest already has the keys {taken}; name the extra ones else")
    return manifest | extra


def _later(rule: LongTailSplit) -> dict[str, str]:
    """What shapes mean that are not in every manifest."""
    shapes = (rule.labeled, rule.unlabeled)
    found = {"all": _ALL} if rule.labeled.shape == "all" else {}
    found |= {"share": _SHARE} if any(part.share is not None for part in shapes) else {}
    return found | ({"rest": _REST} if rule.unlabeled.shape == "rest" else {})


def save(split: Split, path: str | Path, images_sha256: str | None = None, **extra: Any) -> None:
    """Write the manifest; a reader sees the old file or the whole new one."""
    manifest = content(split, images_sha256, **extra)
    # One line per key: a person can read the head of a file with 50,000 indices.
    lines = (f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in manifest.items())
    write_atomically(Path(path), ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def load(path: str | Path, images_sha256: str | None = None) -> Split:
    """Read a verified manifest; with `images_sha256`, only if it was drawn on those images."""
    manifest = read(path)
    recorded = manifest["images_sha256"]
    if images_sha256 is not None and recorded is not None and recorded != images_sha256:
        raise ValueError(
            f"{path}: the split was drawn on other images (SHA-256 {recorded}, these have "
            f"{images_sha256}); use those images or draw a new split"
        )
    return Split(
        **{part: np.array(manifest["indices"][part], dtype=np.int64) for part in PARTS},
        num_classes=manifest["num_classes"],
        seed=manifest["seed"],
        counts=manifest["counts"],
        rule=_rule_of(manifest, path),
    )


def read(path: str | Path) -> dict[str, Any]:
    """The manifest in a file, refused if its indices are not the ones that were written."""
    try:
        manifest: dict[str, Any] = json.loads(expanded(path).read_text(encoding="utf-8"))
        digest = _sha256_of_indices(manifest["indices"])
        sizes = {part: sum(manifest["counts"][part]) for part in PARTS}
        intact = manifest["indices_sha256"] == digest
        intact &= all(sizes[part] == len(manifest["indices"][part]) for part in PARTS)
        intact &= all(len(manifest["counts"][p]) == manifest["num_classes"] for p in PARTS)
        missing = {"num_classes", "seed", "rule", "images_sha256"} - manifest.keys()
    except (
        *(ValueError, KeyError, TypeError, AttributeError),
        *(OverflowError, RecursionError),
    ) as error:
        raise ValueError(
            f"{path} is not a split manifest ({error!r}); draw the split anew"
        ) from error
    if missing:
        raise ValueError(f"{path} is not a split manifest (no {sorted(missing)}); draw it anew")
    if not intact:
        raise ValueError(
            f"{path}: the indices do not match their SHA-256 or their counts, the file was changed "
            "after it was written; restore it or draw the split anew"
        )
    return manifest


def _rule_of(manifest: dict[str, Any], path: str | Path) -> LongTailSplit:
    rule = manifest["rule"]
    try:
        return LongTailSplit(
            labeled=Counts(**rule["labeled"]),
            unlabeled=Counts(**rule["unlabeled"]),
            validation=rule["validation"],
            test=rule["test"],
            # Manifests of version 0.1 were written before there was a choice.
            labeled_in_pool=bool(rule.get("labeled_in_pool", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a split manifest (rule: {error!r}); draw the split anew"
        ) from error


def _meaning_of_m1(rule: LongTailSplit) -> str:
    if rule.unlabeled.shape == "unknown":
        return "no M1: the unlabeled pool is the data set's own images of unknown classes"
    if rule.unlabeled.decided_later:
        return "no M1: the class sizes of the data set decide the unlabeled pool"
    whose = "every" if rule.unlabeled.shape == "uniform" else "the largest"
    where = "" if rule.labeled_in_pool else "not "
    return (
        f"rule.unlabeled.largest: number of unlabeled images of {whose} class; labeled images "
        f"are {where}in the unlabeled pool and not counted in M1"
    )


def _sha256_of_indices(indices: dict[str, list[int]]) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        if any(type(index) is not int for index in indices[part]):
            raise ValueError(f"{part} holds something else than whole numbers")
        # The length keeps an index from passing as one of the next part.
        digest.update(f"{part}:{len(indices[part])}:".encode())
        digest.update(np.array(indices[part], dtype="<i8").tobytes())
    return digest.hexdigest()
