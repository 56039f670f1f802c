"""Finding algorithms, datasets, objectives and presets by name: a plug-in is a file.

Listing reads docstrings without importing anything, so that `--help` is quick.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ssl_selmix.common.names import blame, unknown
from ssl_selmix.common.paths import expanded

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


FOLDERS = {"algorithm": "algorithms", "dataset": "datasets"}


def _package() -> Traversable:
    return files("ssl_selmix")


@cache  # a sweep asks for every run
def _first_line(source: str) -> str:
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def available(kind: str) -> dict[str, str]:
    """Names of the shipped plug-ins of a kind (algorithm, dataset), with a line each."""
    folder = _package() / FOLDERS[kind]
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".py"))
    return {n[:-3]: _first_line((folder / n).read_text("utf-8")) for n in names}


def objectives() -> dict[str, str]:
    """Names of the shipped objectives, with a line each."""
    tree = ast.parse((_package() / "objectives" / "named.py").read_text("utf-8"))
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == "DESCRIPTIONS":
            assert isinstance(node, ast.AnnAssign) and node.value is not None
            return dict(ast.literal_eval(node.value))
    raise AssertionError("objectives/named.py has no literal DESCRIPTIONS")


def presets() -> dict[str, str]:
    """Names of the shipped presets, with the first line of each header."""
    return _headers(_package() / "configs")


def sweeps() -> dict[str, str]:
    """Names of the shipped sweeps, with the first line of each header."""
    return _headers(_package() / "configs" / "sweeps")


def _headers(folder: Traversable) -> dict[str, str]:
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".yaml"))
    lines = {name: (folder / name).read_text("utf-8").partition("\n")[0] for name in names}
    return {name[:-5]: line.lstrip("# ") for name, line in lines.items()}


def preset_text(name: str) -> str:
    """The YAML of a shipped preset or of a file.

    Raises:
        ValueError: there is no such preset or file.
    """
    if name.endswith((".yaml", ".yml")):
        path = expanded(name)
        if not path.is_file():
            raise ValueError(f"no preset file {path}; check the path")
        return text_of(path)
    if name not in presets():
        raise ValueError(unknown("preset", name, presets()))
    return (_package() / "configs" / f"{name}.yaml").read_text("utf-8")


def preset_dataset(name: str) -> str:
    """The data set that a shipped preset or a YAML file of settings names; "" if it names none.

    Raises:
        ValueError: there is no such preset or file.
    """
    import yaml

    from ssl_selmix.common import text

    try:
        found = text.words(preset_text(name))
    except yaml.YAMLError:
        return ""  # whoever reads its settings tells of it
    return str(found.get("dataset") or "") if isinstance(found, Mapping) else ""


def text_of(path: Path) -> str:
    """The text in a user's file.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}); "
            "save it as UTF-8"
        ) from error


def load_module(kind: str, name: str, anywhere: bool = False) -> ModuleType:
    """Import a plug-in by shipped name, dotted module (`mylab.methods`) or path (`./my.py`).

    With `anywhere` a name without a dot may be a module outside the package, too.

    Raises:
        ValueError: there is no such plug-in, or it raises an error.
    """
    if name in available(kind):
        return importlib.import_module(f"ssl_selmix.{FOLDERS[kind]}.{name}")
    if name.endswith(".py") or "/" in name:
        return import_file(Path(name))
    if "." in name.strip(".") or (anywhere and name and importlib.util.find_spec(name)):
        try:
            return importlib.import_module(name)
        except (ModuleNotFoundError, TypeError) as error:
            raise ValueError(f"cannot import {name} ({error}); is it on PYTHONPATH?") from error
        except Exception as error:
            raise ValueError(f"{name} cannot be imported: {blame(error, name)}") from error
    raise ValueError(unknown(kind, name, available(kind)))


def import_file(path: Path) -> ModuleType:
    """Import a Python file from anywhere.

    Raises:
        ValueError: there is no such file, it is no Python file, or it raises an error.
    """
    path = expanded(path)
    if not path.is_file():
        raise ValueError(f"no file {path}; check the path")
    # A file called random.py must not replace the module of that name, nor another random.py.
    place = hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()
    spec = importlib.util.spec_from_file_location(f"_plugin_{place}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file; a plug-in ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}; correct the file") from error
    except Exception as error:
        raise ValueError(f"{path} cannot be imported: {blame(error, str(path))}") from error
    return module


def parted(name: str) -> tuple[str, list[str]]:
    """A data set's name, and the settings that stand behind it: hf:OWNER/NAME is hf, data.name=...

    >>> parted("hf:uoft-cs/cifar10")
    ('hf', ['data.name=uoft-cs/cifar10'])
    >>> parted("digits")
    ('digits', [])
    """
    head, colon, rest = name.partition(":")
    if not colon or head not in available("dataset"):
        return name, []
    return head, [f"data.name={rest}"]


def dataset(name: str) -> ModuleType:
    """The file of a dataset, which has a `Config` and `load`.

    Raises:
        ValueError: there is no such file, or it lacks one of the two.
    """
    module = load_module("dataset", name)
    if missing := [part for part in ("Config", "load") if not hasattr(module, part)]:
        raise ValueError(f"{name} is no dataset: it lacks {' and '.join(missing)}")
    from ssl_selmix.common import fields  # not for listings, which need no yaml

    kind: Any = module.Config
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ValueError(
            f"Config of {name} is no dataclass; derive it from ssl_selmix.splits.LongTailSplit"
        )
    module.Config = fields.completed(kind)  # type: ignore[attr-defined]
    return module
