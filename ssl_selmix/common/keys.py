"""The message for a setting that does not exist: what was meant, or which stage has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ssl_selmix.common import plugins
from ssl_selmix.common.names import near, respelt

# Names that other programs have for these settings.
ELSEWHERE = {
    **{"learning_rate": "lr", "batch_size": "batch", "bs": "batch", "wd": "weight_decay"},
    **{"epochs": "steps", "iterations": "steps", "iters": "steps", "num_steps": "steps"},
    **{"max_steps": "steps", "num_train_iter": "steps", "p_cutoff": "threshold", "uratio": "mu"},
    **{"ema_m": "ema", "ema_decay": "ema", "net": "name", "network": "name", "arch": "name"},
    **{"imb_factor": "rho", "gamma_l": "rho", "num_workers": "workers", "gpu": "device"},
    **{"data_dir": "root", "img_size": "size", "image_size": "size", "amp": "precision"},
}


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The message for a key that no section of this run has.

    >>> unknown_key("lr", ["seed", "fixmatch.lr", "fixmatch.batch"])
    "unknown key 'lr'; did you mean fixmatch.lr?"
    >>> unknown_key("selmix.steps", ["seed", "fixmatch.steps"])
    "unknown key 'selmix.steps'; no stage of this run is selmix: add --then selmix"
    """
    sections = _sections(known)
    section, dot, name = key.partition(".")
    absent = plugins.available("algorithm").keys() - set(sections)
    meant = near(section, [*sections, *absent], cutoff=0.6) if dot else []
    if meant and meant[0] in absent:
        said = f"unknown key {key!r}; no stage of this run is {meant[0]}: add --then {meant[0]}"
        return said + (f", and set {meant[0]}.{name}" if meant[0] != section else "")
    if found := nearest_keys(key, known):
        return f"unknown key {key!r}; did you mean {' or '.join(found[:4])}?"
    inner = sorted(k for k in known if k.startswith(f"{section}."))
    return f"unknown key {key!r}; known: {', '.join(inner or sorted(known))}"


def _sections(known: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(k.partition(".")[0] for k in known if "." in k))


def nearest_keys(key: str, known: Sequence[str]) -> list[str]:
    """The keys that may be meant, the surest kind of them alone."""
    section, dot, name = key.partition(".")
    sections = near(section, _sections(known), cutoff=0.6)[:1] if dot else []
    inner = [k for k in known if sections and k.startswith(f"{sections[0]}.")]
    wanted = respelt(name if sections else key)
    same = ELSEWHERE.get(wanted.rpartition(".")[2], "")
    return (
        _ending(wanted, inner)
        or _ending(same, inner)
        or _near_end(name, inner)
        or _ending(wanted, known)
        or _ending(same, known)
        or [k for k in known if respelt(key) == respelt(k).replace(".", "_")]
        or _near_end(key, known)
    )


def _ending(name: str, keys: Iterable[str]) -> list[str]:
    return [k for k in keys if name and f".{respelt(k)}".endswith(f".{name}")]


def _near_end(name: str, keys: Sequence[str]) -> list[str]:
    """The keys whose last word is spelt like this."""
    last = name.rpartition(".")[2]
    words = near(last, dict.fromkeys(k.rpartition(".")[2] for k in keys), cutoff=0.6)
    return [k for word in words[:1] for k in keys if k.rpartition(".")[2] == word]
