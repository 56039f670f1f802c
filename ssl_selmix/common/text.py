"""YAML that keeps what was written: a word stays a word until the type of its field is known.

YAML itself reads 2024_01 as 202401, on as true, 12:30 as 750. Whoever wrote `root: 2024_01` meant
a folder. So settings are read as `Word`s, which `common.fields` turns into values; only what this
program wrote (`dump`, with quotes where they are needed) is read by YAML's own rules (`load`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

STR, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
SEQ, MAP = "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"
MOST = 10_000  # values in a file, counted as often as aliases repeat them


class Word(str):
    """A text whose field decides what it means: typed in a command, or unquoted in YAML."""

    __slots__ = ()

    @property
    def is_null(self) -> bool:
        """Whether YAML means nothing by it."""
        return self.strip().lower() in ("", "null", "~")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML whose mappings name every key once, and whose aliases neither circle nor explode."""

    def get_single_data(self) -> Any:
        """The document, which must be one.

        Raises:
            YAMLError: it is none, or too large.
        """
        try:
            node = self.get_single_node()
            if node is None:
                return None
            _count(node, {}, ())
            return self.construct_document(node)
        except RecursionError as error:
            raise yaml.YAMLError("it is nested too deeply") from error
        except ValueError as error:  # such as an integer of too many digits
            raise yaml.YAMLError(str(error)) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """As every loader's, but a key that comes twice is a mistake."""
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag != MERGE and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"found duplicate key {key.value}", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _count(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    if id(node) in above:
        raise yaml.YAMLError("an alias means what it is part of")
    if id(node) not in known:
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        nodes = [n for part in parts for n in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_count(n, known, (*above, id(node))) for n in nodes)
    if known[id(node)] > MOST:
        raise yaml.YAMLError(f"it has more than {MOST} values")
    return known[id(node)]


class _Words(_Loader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {"<": [(MERGE, re.compile("^<<$"))]}
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        SEQ: yaml.SafeLoader.construct_yaml_seq,
        MAP: yaml.SafeLoader.construct_yaml_map,
        None: yaml.SafeLoader.construct_undefined,
    }


def _word(loader: _Words, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    return Word(text) if node.style is None else text


_Words.add_constructor(STR, _word)


class _Values(_Loader):
    """YAML 1.1 without dates, and with 1e-3 for a number: the rules of every config.yaml so far."""


FLOAT = re.compile(
    r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*[eE][-+]?[0-9]+
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.X,
)
_Values.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
_Values.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith(":timestamp")]
    for first, rules in _Values.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes a text with quotes where `_Values` would read another value from it."""

    yaml_implicit_resolvers = _Values.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """A value that comes twice is written twice."""
        return True


def words(text: str) -> Any:
    """YAML as nested mappings and lists of `Word`s and, where it has quotes, of texts.

    Raises:
        YAMLError: it is none, or asks for an object.
    """
    return yaml.load(text, _Words)


def value(text: str) -> Any:
    """YAML by its own rules, for a field that may be anything.

    Raises:
        YAMLError: it is none.
    """
    return yaml.load(text, _Values)


def load(path: Path) -> dict[str, Any]:
    """The values in a YAML file that this program wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no YAML mapping of texts to values.
    """
    try:
        found = yaml.load(path.read_bytes().decode(), _Values)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} has no sections")
    return {str(key): value for key, value in found.items()}


def dump(tree: Mapping[str, Any]) -> str:
    """YAML from which `load` reads the same values."""
    return str(
        yaml.dump(
            dict(tree),
            Dumper=_Dumper,
            default_flow_style=False,
            allow_unicode=True,
            sort_keys=False,
        )
    )
