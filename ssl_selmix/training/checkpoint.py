"""Checkpoints that are whole or absent: checked on reading, replaced in one rename.

A checkpoint is a dictionary of tensors and plain values that loads with `weights_only=True`. It
carries a SHA-256 of its contents, because a zip with flipped bits loads without complaint, and a
fingerprint of the run it belongs to.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_selmix.common.atomic import write_atomically

BETWEEN = "between.pt"  # saved between two validations, and removed by the next one
NEXT = ".last.pt.next"  # whole, about to become last.pt


class Refused(ValueError):
    """A checkpoint file that is damaged or belongs to another run."""


def digest(value: Any) -> str:
    """SHA-256 over the structure, the plain values and the bytes of all tensors."""
    sha = hashlib.sha256()

    def feed(node: Any) -> None:
        if isinstance(node, Tensor):
            array = node.detach().cpu().contiguous()
            sha.update(f"{array.dtype}{tuple(array.shape)}".encode())
            sha.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(node, dict):
            for key, item in node.items():
                sha.update(repr(key).encode())
                feed(item)
        elif isinstance(node, list | tuple):
            sha.update(str(len(node)).encode())
            for item in node:
                feed(item)
        else:
            sha.update(repr(node).encode())

    feed(value)
    return sha.hexdigest()


def save(path: Path, state: dict[str, Any], *, keep_previous: bool = False) -> None:
    """Save a dictionary of tensors and plain values; the file before it becomes `previous.pt`."""
    buffer = io.BytesIO()
    torch.save({"sha256": digest(state), "state": state}, buffer)
    if keep_previous and path.exists():
        # After a crash between the two renames `tidy` does the second one.
        partial = path.with_name(NEXT)
        write_atomically(partial, buffer.getvalue())
        path.replace(path.with_name("previous.pt"))
        partial.replace(path)
    else:
        write_atomically(path, buffer.getvalue())


def load(path: Path, fingerprint: str | None = None) -> dict[str, Any]:
    """Load what `save` wrote.

    Raises:
        Refused: the file is damaged, is no checkpoint of this project, or has another fingerprint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state, sha256 = content["state"], content["sha256"]
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else "unreadable"
        raise Refused(f"{path} is damaged or no checkpoint of ssl_selmix ({reason})") from error
    if not isinstance(state, dict) or digest(state) != sha256:
        raise Refused(f"{path} is damaged: its contents do not match its SHA-256")
    if fingerprint is not None and state.get("fingerprint") != fingerprint:
        raise Refused(f"{path} belongs to another run: its configuration or images differ")
    return state


class Newest(NamedTuple):
    """The newest usable checkpoint of a stage, and why others were refused."""

    state: dict[str, Any] | None
    refused: list[str]
    name: str = ""


def newest(folder: Path, fingerprint: str) -> Newest:
    """The newest usable checkpoint of a stage, and why newer ones were refused."""
    refused: list[str] = []

    def found(*names: str) -> tuple[dict[str, Any] | None, str]:
        for path in (folder / name for name in names):
            try:
                if path.exists():
                    return load(path, fingerprint), path.name
            except Refused as error:
                refused.append(str(error))
        return None, ""

    between, name = found(BETWEEN)
    state, file = found("last.pt", "previous.pt")
    # One of the same step is older: what is saved between validations is so before one.
    if between is not None and (state is None or between["step"] > state["step"]):
        state, file = between, name
    return Newest(state, refused, file)


def tidy(folder: Path) -> None:
    """Remove what a killed process left half done; what was whole takes its place."""
    last, following = folder / "last.pt", folder / NEXT
    if following.exists() and not last.exists():
        following.replace(last)  # the second of the two renames in `save`
    for path in (following, *folder.glob(".*.partial")):
        path.unlink(missing_ok=True)
