"""Parts of the reference, made from the code: settings, commands, and the files of a run.

`conf.py` puts them where a page has the marker `<!-- site: NAME WORDS -->`. Needs no Sphinx, so
that the tests read the same text.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any

from pydantic.fields import FieldInfo

from ssl_selmix import cli, objectives
from ssl_selmix.algorithm import Algorithm
from ssl_selmix.algorithm import load as load_algorithm
from ssl_selmix.common import config, plugins
from ssl_selmix.common.arguments import listing
from ssl_selmix.common.rules import comments
from ssl_selmix.runs import reference, results
from ssl_selmix.runs.reference import Entry


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def code(text: str) -> str:
    """Text as code for a cell; Markdown has no empty code."""
    return f"`{cell(text)}`" if text.strip() else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def settings_table(entries: Iterable[Entry]) -> str:
    """A row for each setting."""
    head = ("setting", "default", "meaning", "may be", "symbol")
    return table(head, [_row(entry) for entry in entries])


def _row(entry: Entry) -> tuple[str, ...]:
    told = entry.meaning.replace("<", "&lt;").replace("*", "\\*")
    own = code(entry.symbol)
    values = cell(entry.values.replace("|", " | "))  # so that a line can end between them
    return code(entry.key), code(entry.default), cell(told), values, own


def run_settings() -> str:
    """The settings of the run, and those that all methods share."""
    titles = {
        "model": "The network",
        "views": "Views of the unlabeled images",
        "features": "Features of a network that stays as it is",
    }
    made = [f"## The run\n\n{settings_table(reference.entries('', config.Run))}"]
    for name, kind in reference.SHARED.items():
        rows = settings_table(reference.entries(name, kind))
        made.append(f"## {titles.get(name, name)}\n\n{rows}")
    return "\n\n".join(made)


def shared_settings() -> str:
    """The settings that every method has, under the name METHOD."""
    return settings_table(reference.entries("METHOD", Algorithm.Config))


def method_settings() -> str:
    """A section for each method: its own settings, and what it changes of the shared ones."""
    shared = {e.name: e.default for e in reference.entries("", Algorithm.Config)}
    made = []
    for name, line in plugins.available("algorithm").items():
        short, kind = load_algorithm(name)
        found = [
            entry
            for entry in reference.entries(short, kind.Config)
            if shared.get(entry.name) != entry.default
        ]
        page = f"[What it does](../methods/{page_of(name)})" if page_of(name) else ""
        made.append(f"## {name}\n\n{cell(line)} {page}\n\n{settings_table(found)}")
    return "\n\n".join(made)


def page_of(name: str) -> str:
    """The page of a method in docs/methods, with the heading for it; "" if it has none."""
    folder = Path(__file__).parent / "methods"
    if (folder / f"{name}.md").is_file():
        return f"{name}.md"
    for page in sorted(folder.glob("*.md")):
        if re.search(rf"^## {name}$", page.read_text("utf-8"), re.M):
            return f"{page.name}#{name}"
    return ""


def data_settings() -> str:
    """A section for each data set."""
    made = []
    for name, line in plugins.available("dataset").items():
        found = reference.entries("data", plugins.dataset(name).Config)
        made.append(f"## {name}\n\n{cell(line)}\n\n{settings_table(found)}")
    return "\n\n".join(made)


def objective_settings() -> str:
    """A row for each objective, then the settings of all of them."""
    rows = []
    for name, line in plugins.objectives().items():
        options = ", ".join(f"`{option}`" for option in sorted(objectives.option_names(name)))
        rows.append((code(name), cell(line), options))
    found = reference.entries("selmix", objectives.Config)
    names = table(("objective", "what it is", "its settings"), rows)
    return f"{names}\n\n{settings_table(found)}"


def preset_list() -> str:
    """The presets with a line each."""
    rows = [(code(name), cell(line)) for name, line in plugins.presets().items()]
    return table(("preset", "what it sets"), rows)


def commands() -> str:
    """A section for each command: what it does, its arguments, the end of its help."""
    made = []
    for name, room in cli.ROOMS.items():
        module = import_module(f"ssl_selmix.{room}.command")
        made.append(f"## ssl-selmix {name}\n\n{command(module.COMMANDS[name].parser())}")
    return "\n\n".join(made)


def command(parser: argparse.ArgumentParser) -> str:
    """The help of a parser in Markdown: what it does, examples, arguments by group, the rest."""
    made = [_prose(parser.description or "")]
    if examples := getattr(parser, "examples", ()):
        lines = "\n".join(f"# {told}\n{line}" for line, told in examples)
        made.append(f"```sh\n{lines}\n```")
    rows, last = list[tuple[str, str]](), list[tuple[str, str]]()
    for group in parser._action_groups:
        found = [_argument(a) for a in group._group_actions if a.help != argparse.SUPPRESS]
        if group.title == "other options":
            last = found
        else:
            title = [] if group.title == "arguments" else [(f"**{group.title}**", "")]
            rows += [*title, *found] if found else []
    rows += [("**other options**", ""), *last] if last else []
    made.append(table(("argument", "meaning"), rows))
    # Lists of names have pages of their own.
    for paragraph in (parser.epilog or "").replace(listing(), "").strip().split("\n\n"):
        made.append(_block(paragraph) if "\n" in paragraph else _prose(paragraph))
    return "\n\n".join(part for part in made if part)


def _argument(action: argparse.Action) -> tuple[str, str]:
    shown = action.metavar or (action.dest if action.nargs != 0 else "")
    value = " ".join(shown) if isinstance(shown, tuple) else shown
    if action.choices is not None and not action.metavar:
        value = "|".join(map(str, action.choices))
    takes = action.nargs != 0 and not isinstance(action, argparse._VersionAction)
    words = [f"{o} {value}" if takes else o for o in action.option_strings] or [value or ""]
    told = (action.help or "").replace("<", "&lt;").replace("*", "\\*")
    if action.help and "%(" in action.help:
        told = argparse.HelpFormatter("")._expand_help(action)
    return ", ".join(code(word) for word in words), cell(told)


def _prose(text: str) -> str:
    return re.sub(r"<(?=\w)", "&lt;", " ".join(text.split())).replace("*", "\\*")


def _block(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


def file_of(root: str) -> str:
    """The tables of a file's sections, the whole file first; `root` is its class in `results`."""
    kinds = dict.fromkeys(_sections(getattr(results, root)))
    return "\n\n".join(_section(kind) for kind in kinds)


def _sections(kind: type[Any]) -> Iterator[type[Any]]:
    yield kind
    for found in kind.model_fields.values():
        for inner in _classes(found.annotation):
            yield from _sections(inner)


def _classes(hint: Any) -> Iterator[type[Any]]:
    if inspect.isclass(hint) and issubclass(hint, results.Section):
        yield hint
    for part in typing.get_args(hint):
        yield from _classes(part)


def _section(kind: type[Any]) -> str:
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        meanings |= {k: v for k, v in comments(base).items() if v and "type: ignore" not in v}
    rows = []
    for name, field in kind.model_fields.items():
        key = field.alias or name
        told = cell(meanings.get(name, "").replace("*", "\\*").replace("<", "&lt;"))
        told = re.sub(r"\bNone\b", "null", told)
        rows.append((code(key), _json(field), "always" if field.is_required() else "", told))
    head = ("key", "value", "there", "meaning")
    line = (kind.__doc__ or "").partition("\n")[0]
    line = re.sub(r"^[\w.]+\.json: (\w)", lambda found: found[1].upper(), line)
    line = re.sub(r"\bNone\b", "null", cell(line))
    return f"### {kind.__name__}\n\n{line}\n\n{table(head, rows)}"


NAMES: dict[Any, str] = {
    **{results.Share: "share, 0 to 1", results.Number: "number", results.Whole: "whole number"},
    **{results.Images: "number of images", results.Name: "text", str: "text", int: "whole number"},
    **{float: "number", bool: "true or false", type(None): "null", Any: "any"},
}


def _json(field: FieldInfo) -> str:
    return _named(field.annotation, field.metadata)


def _named(hint: Any, metadata: Sequence[Any] = ()) -> str:
    """What a value is in JSON, in words."""
    for kind, name in NAMES.items():
        same = typing.get_origin(kind) is typing.Annotated
        if hint is kind or (same and metadata and list(kind.__metadata__) == list(metadata)):
            return name
    if typing.get_origin(hint) is typing.Annotated:
        return _named(hint.__origin__, hint.__metadata__)
    parts = typing.get_args(hint)
    if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_named(part) for part in parts)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if typing.get_origin(hint) is list:
        return f"list of: {_named(parts[0])}"
    if typing.get_origin(hint) is dict:
        return f"object of: {_named(parts[1])}"
    if inspect.isclass(hint) and issubclass(hint, results.Section):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return str(getattr(hint, "__name__", hint))


def gallery() -> str:
    """A section for each script of the gallery: what it shows, its picture, its code."""
    folder = Path(__file__).parents[1] / "examples" / "gallery"
    made, names = [], []
    for script in sorted(folder.glob("[!_]*.py")):
        text = script.read_text("utf-8")
        title, _, about = (ast.get_docstring(ast.parse(text)) or script.stem).partition("\n")
        picture, printed = script.with_suffix(".png"), script.with_suffix(".txt")
        names.append((f"[{script.stem}](#gallery-{script.stem})", cell(title.rstrip("."))))
        parts = [f"(gallery-{script.stem})=\n## {title.rstrip('.')}", about.strip()]
        if picture.is_file():
            parts.append(f"![{title.rstrip('.')}](../../examples/gallery/{picture.name})")
        if printed.is_file():
            parts.append(f"It prints:\n\n```text\n{printed.read_text('utf-8').strip()}\n```")
        code_of = text.partition('"""')[2].partition('"""')[2].strip()
        parts.append(f"`examples/gallery/{script.name}`\n\n```python\n{code_of or text}\n```")
        made.append("\n\n".join(part for part in parts if part))
    return "\n\n".join([table(("script", "what it shows"), names), *made])


MAKERS: dict[str, Callable[..., str]] = {
    "run-settings": run_settings,
    "shared-settings": shared_settings,
    "method-settings": method_settings,
    "data-settings": data_settings,
    "objective-settings": objective_settings,
    "presets": preset_list,
    "commands": commands,
    "file": file_of,
    "gallery": gallery,
}


def made(name: str, words: str = "") -> str:
    """What stands in the place of a marker.

    Raises:
        ValueError: nothing has this name.
    """
    if name not in MAKERS:
        raise ValueError(f"no part {name!r} of the reference; there are {', '.join(MAKERS)}")
    return MAKERS[name](*words.split())
