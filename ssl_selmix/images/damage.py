"""What libjpeg says about a JPEG that it decodes all the same.

A JPEG that lost its middle is decoded to its end, with grey or wrong colours. The library says so
on the standard error of the process and nowhere else: neither Pillow nor OpenCV hands it on.
"""

from __future__ import annotations

import atexit
import os
import re
import tempfile
import threading
from collections.abc import Callable
from typing import IO, TypeVar

import numpy as np

JPEG = b"\xff\xd8\xff"
# Bytes before the end that some cameras write beyond the last pixels.
PADDING = 16
SAID = re.compile(rb"^(?:Corrupt JPEG data: .*|Premature end of JPEG file.*)\n?", re.M)
EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")

Found = TypeVar("Found")


class _Listener:
    """Catches what is written on file descriptor 2 while something is decoded, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._owner = 0

    def __call__(self, decode: Callable[[], Found]) -> tuple[Found, bytes]:
        with self._lock:
            file = self._own_file()
            try:
                before = os.dup(2)
            except OSError:  # a daemon without a standard error hears nothing
                return decode(), b""
            os.dup2(file.fileno(), 2)
            try:
                found = decode()
            finally:
                os.dup2(before, 2)
                os.close(before)
                heard = self._taken(file)
            if rest := SAID.sub(b"", heard):  # of other threads, or of the program's own
                os.write(2, rest)
            return found, heard

    def _own_file(self) -> IO[bytes]:
        if self._file is None or self._owner != os.getpid():  # forked workers would share a place
            self._file, self._owner = tempfile.TemporaryFile(buffering=0), os.getpid()
            atexit.register(self._file.close)
        return self._file

    def _taken(self, file: IO[bytes]) -> bytes:
        if not file.seek(0, os.SEEK_CUR):
            return b""
        file.seek(0)
        heard = file.read()
        file.seek(0)
        file.truncate()
        return heard


_listener = _Listener()


def heard(decode: Callable[[], Found]) -> tuple[Found, str]:
    """What a decoder returns, and how the JPEG that it met is damaged: nothing if it is whole."""
    found, said = _listener(decode)
    return found, _damage(said) if said else ""


def damage_of(content: bytes) -> str:
    """How the bytes of an image file are a damaged JPEG; nothing if they are whole, or no JPEG."""
    if not content.startswith(JPEG):
        return ""
    import cv2

    # The smallest decoding: it reads all of the data and spares most of the arithmetic.
    flags = cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return heard(lambda: cv2.imdecode(np.frombuffer(content, np.uint8), flags))[1]
    except cv2.error:  # too large for it; Pillow has its own limit
        return ""


def _damage(said: bytes) -> str:
    lines = [line.decode("ascii", "replace").strip() for line in SAID.findall(said)]
    reason = next(iter(lines), "").removeprefix("Corrupt JPEG data: ")
    extra = EXTRANEOUS.fullmatch(reason)
    return "" if extra and int(extra[1]) <= PADDING else reason
