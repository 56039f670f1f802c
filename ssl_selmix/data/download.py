"""What downloaded data sets share: settings, errors in one line, the way to an image pool.

torchvision's readers check every file against the published MD5.
"""

from __future__ import annotations

from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_selmix.augment.tensor import Strong, Weak
from ssl_selmix.common.paths import expanded
from ssl_selmix.data.source import ImageSet
from ssl_selmix.splits import LongTailSplit

# Zero padding, three operations, a square of random size: the views of the SelMix paper's code.
WEAK = Weak(padding="zeros")
STRONG = Strong(weak=WEAK, num_ops=3, random_cutout=True)


@dataclass
class Downloaded(LongTailSplit):
    """A split of a data set that torchvision knows, and where its files are."""

    root: str = "data"  # the folder that holds the data set's own folder
    download: bool = True  # fetch and unpack missing or damaged files


@dataclass(frozen=True)
class Archive:
    """A published archive of a data set: where it is, its MD5, the folder that it unpacks to."""

    url: str
    md5: str
    folder: str

    @property
    def told(self) -> str:
        """What it is called in errors."""
        return f"{self.url} (MD5 {self.md5})"

    def fetch(self, root: Path) -> None:
        """Download and unpack it below the root, if its folder is not there.

        Raises:
            ValueError: that failed.
        """
        from torchvision.datasets.utils import download_and_extract_archive

        if (root / self.folder).is_dir():
            return
        try:
            download_and_extract_archive(self.url, str(root), md5=self.md5)
        except (OSError, RuntimeError, ValueError, EOFError, HTTPException) as error:
            if isinstance(error, HTTPError):
                error.close()
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"the download of {self.told} failed ({reason}); unpack it in {root}, or set "
                f"data.root to the folder that has {self.folder}"
            ) from error


def open_part(name: str, config: Downloaded, **part: Any) -> Any:
    """One part of a torchvision data set, its files fetched if need be and verified.

    Args:
        name: of the class in torchvision.datasets.
        config: where the files are.
        part: arguments that choose the part, such as train=True or split="test".

    Raises:
        ValueError: files are missing or damaged and could not be downloaded.
    """
    from torchvision import datasets

    kind = getattr(datasets, name)
    root = expanded(config.root)
    try:
        return kind(root, download=config.download, **part)
    except (OSError, RuntimeError, ValueError, EOFError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the server's answer, with an open connection
        raise ValueError(_remedy(kind, root, config.download, error)) from error


def _remedy(kind: Any, root: Path, download: bool, error: Exception) -> str:
    from torchvision.datasets.utils import check_integrity

    folder = root / kind.base_folder
    known = dict([*kind.train_list, *kind.test_list])
    if meta := getattr(kind, "meta", None):
        known[meta["filename"]] = meta["md5"]
    present = [file for file in known if (folder / file).is_file()]
    try:
        damaged = [file for file in present if not check_integrity(folder / file, known[file])]
    except OSError:  # not allowed to read; the first error says so
        damaged = []
    reason = " ".join(str(error).split()) or type(error).__name__
    if missing := [file for file in known if file not in present]:
        state = f"{folder} lacks {_some(missing)}"
    elif damaged:
        state = f"{folder} has a damaged {_some(damaged)}"
    else:
        state = f"{folder} cannot be used ({reason})"
    if download:
        state += f", and the download failed ({reason})"
    put = f"unpack {kind.url} in {root}" + ("" if download else ", set data.download=true")
    return f"{kind.__name__}: {state}; {put}, or set data.root to the folder that has {folder.name}"


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def pool(images: np.ndarray, size: int | None = None) -> Tensor:
    """N×C×H×W uint8 as a contiguous pool; bilinear with antialiasing to size×size pixels."""
    whole = torch.from_numpy(images)
    if size is None or whole.shape[2:] == (size, size):
        return whole.contiguous()
    resized = torch.empty((*whole.shape[:2], size, size), dtype=torch.uint8)
    # In pieces, because an interpolation copies what it is given: 2.8 GB for all of STL-10.
    for piece, out in zip(whole.split(1000), resized.split(1000), strict=True):
        # Bytes in, bytes out is Pillow's arithmetic, and so that of torchvision's Resize.
        out.copy_(F.interpolate(piece, (size, size), mode="bilinear", antialias=True))
    return resized


def cifar(
    name: str, config: Downloaded, mean: tuple[float, ...], std: tuple[float, ...]
) -> ImageSet:
    """CIFAR-10 or CIFAR-100, training and test images, normalised by the given constants."""
    train, test = (open_part(name, config, train=part) for part in (True, False))
    return ImageSet(
        train=pool(train.data.transpose(0, 3, 1, 2)),
        train_labels=np.asarray(train.targets, dtype=np.int64),
        test=pool(test.data.transpose(0, 3, 1, 2)),
        test_labels=np.asarray(test.targets, dtype=np.int64),
        class_names=tuple(train.classes),
        mean=mean,
        std=std,
        weak=WEAK,
        strong=STRONG,
    )
