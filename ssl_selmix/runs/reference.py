"""What can be set, in words: every key with its default, what it may be, and what it means."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from ssl_selmix import models, objectives
from ssl_selmix.algorithm import Algorithm
from ssl_selmix.algorithm import load as load_algorithm
from ssl_selmix.common import config, fields, plugins
from ssl_selmix.common.arguments import section
from ssl_selmix.common.keys import nearest_keys
from ssl_selmix.common.names import near, unknown
from ssl_selmix.common.rules import Rule, describe
from ssl_selmix.data import extraction
from ssl_selmix.runs import views

NARROWEST, WIDEST = 80, 40  # columns of text, and of a word in it
SHARED: dict[str, type[Any]] = {
    "model": models.Config,
    "views": views.Config,
    "features": extraction.Config,
}
TYPES: dict[Any, str] = {int: "whole number", float: "number", bool: "true|false", str: "text"}
WIDE = 100  # columns of what is said of one setting, at most
# How meanings begin that tell the paper's symbol first: `eta, learning rate`, `N1 of the labeled`.
GREEK = "alpha|beta|gamma|eta|kappa|lambda|mu|omega|rho|sigma|tau"
SYMBOL = re.compile(
    rf"((?:{GREEK})(?:_?[A-Za-z]?\d*|_\w+)|n_sigma|[A-Za-z](?:\d|_\w+)?)(?=[,;:]|$| of | ~)"
)
RUN = "run"  # the section without a name, where one has to be named


@dataclass(frozen=True)
class Entry:
    """A setting as the command line has it."""

    key: str
    default: str
    values: str  # what it may be
    meaning: str
    source: str = field(default="", compare=False)  # the class that declares it, and its file

    @property
    def symbol(self) -> str:
        """The paper's symbol, with which the meaning begins if it has one; else "".

        >>> Entry("a.lr", "0.03", "number", "eta, learning rate").symbol
        'eta'
        >>> Entry("a.head", "linear", "text", "linear; cosine").symbol
        ''
        """
        found = SYMBOL.match(self.meaning)
        return found[1] if found else ""

    @property
    def choices(self) -> list[str]:
        """The words that it may be, if they are few.

        >>> Entry("a.keep", "best", "best|last or null", "what is kept").choices
        ['best', 'last', 'null']
        """
        words = self.values.partition(" or ")
        return [*words[0].split("|"), *filter(None, [words[2]])] if "|" in words[0] else []

    @property
    def name(self) -> str:
        """The key without its section."""
        return self.key.partition(".")[2] or self.key


def entries(group: str, kind: type[Any], default: Any = None) -> Iterator[Entry]:
    """The settings of a configuration, those of groups in it one by one.

    Args:
        group: what the keys begin with; "" for those of the run.
        kind: the dataclass.
        default: what the defaults are taken from, where they are not those of the class.
    """
    hints = fields.types_of(kind)
    for setting in describe(kind):
        if setting.name not in hints:
            continue
        key = f"{group}.{setting.name}" if group else setting.name
        hint, value = hints[setting.name], getattr(default, setting.name, setting.default)
        if dataclasses.is_dataclass(hint):
            inner = value if dataclasses.is_dataclass(value) else None
            yield from entries(key, hint, inner)  # type: ignore[arg-type]
        else:
            none = value is dataclasses.MISSING
            shown = "(to be set)" if none else fields.typed(fields.plain(value))
            said = _values(hint, setting.rules), setting.meaning
            yield Entry(key, shown, *said, _source(kind, setting.name))


def _source(kind: type[Any], name: str) -> str:
    """Where a field of a configuration was declared, or declared again."""
    owner = next(c for c in kind.__mro__ if name in inspect.get_annotations(c))
    module = sys.modules.get(owner.__module__)
    file = getattr(module, "__file__", None) or owner.__module__
    parts = Path(file).parts
    place = parts.index("ssl_selmix") if "ssl_selmix" in parts else len(parts) - 1
    while "ssl_selmix" in parts[place + 1 :]:  # a checkout may have the package's name, too
        place = parts.index("ssl_selmix", place + 1)
    return f"{owner.__qualname__} in {'/'.join(parts[place:])}"


def _values(hint: Any, rules: Sequence[Rule]) -> str:
    """What the type and the rules of a field allow."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    null = [" or null"] * (type(None) in members)
    choices = [rule for rule in rules if isinstance(rule, tuple)]
    bounds = [("" if rule[0] == ">" else "in ") + rule for rule in rules if isinstance(rule, str)]
    kinds = [TYPES.get(kind, "list") for kind in members if kind is not type(None)]
    kinds = [kind for kind in kinds if kind != TYPES[int] or TYPES[float] not in kinds]
    said = "|".join(choices[-1]) if choices else " or ".join(kinds)
    return " ".join([said, *bounds]) + "".join(null)


def of_algorithm(name: str) -> str:
    """The settings of a method: its own, then those that every stage has."""
    short, kind = load_algorithm(name)
    every = {field.name for field in dataclasses.fields(Algorithm.Config)}
    found = list(entries(short, kind.Config))
    own = [entry for entry in found if entry.name not in every]
    told = plugins.available("algorithm").get(name) or _first_line(kind)
    parts = [f"{short}: {told}", *([_first_line(kind)] if name != told else [])]
    lines = ["\n  ".join(dict.fromkeys(part for part in parts if part))]
    lines += [table(f"settings of {short} ({short}.KEY=VALUE)", own)] if own else []
    shared = [entry for entry in found if entry.name in every]
    lines += [table(f"settings of every stage ({short}.KEY=VALUE)", shared)] if shared else []
    return "\n\n".join(lines)


def of_dataset(name: str) -> str:
    """The settings of a data set, and the presets for it."""
    module = plugins.dataset(name)
    told = plugins.available("dataset").get(name) or (module.__doc__ or "").partition("\n")[0]
    lines = [f"{name}: {told}", table("settings (data.KEY=VALUE)", entries("data", module.Config))]
    presets = {p: t for p, t in plugins.presets().items() if plugins.preset_dataset(p) == name}
    return "\n\n".join([*lines, *([section("presets for it", presets)] if presets else [])])


def of_objective(name: str) -> str:
    """An objective, and the settings that it has."""
    options = {*objectives.option_names(name), "constraints"}
    found = [entry for entry in entries("selmix", objectives.Config) if entry.name in options]
    used = f"selmix.objective={name}; csst.objective and posthoc.objective take it, too"
    told = f"{name}: {plugins.objectives()[name]}\n  {used}"
    return f"{told}\n\n{table('its settings (selmix.KEY=VALUE)', found)}"


def of_section(name: str) -> str:
    """The settings of the network, of views, or of the run as a whole."""
    kind = SHARED.get(name, config.Run)
    where = f"{name}.KEY=VALUE" if name in SHARED else "KEY=VALUE"
    return table(f"settings of {name} ({where})", entries(name if name in SHARED else "", kind))


def table(title: str, found: Iterator[Entry] | Sequence[Entry]) -> str:
    """A title and a row for each setting: name=default, what it may be, what it means."""
    rows = [(f"{entry.name}={entry.default}", entry.values, entry.meaning) for entry in found]
    first, second = (min(max(len(row[i]) for row in rows), WIDEST) for i in (0, 1))
    width = max(shutil.get_terminal_size((110, 24)).columns, NARROWEST)
    indent = " " * (first + second + 6)
    lines = []
    for name, values, meaning in rows:
        start = f"  {name:{first}}  {values:{second}}  "
        wrapped = textwrap.wrap(meaning, max(30, width - len(indent))) or [""]
        if len(start) > len(indent):
            start = f"{start.rstrip()}\n{indent}"
        lines += [start + wrapped[0], *(indent + line for line in wrapped[1:])]
    return "\n".join([f"{title}:", *(line.rstrip() for line in lines)])


def _first_line(kind: type) -> str:
    return (vars(kind).get("__doc__") or "").strip().partition("\n")[0]


def kind_of(name: str) -> str:
    """Whether a name, path or dotted name is that of an algorithm, a dataset or an objective.

    Raises:
        ValueError: of none of them.
    """
    shipped = {kind: plugins.available(kind) for kind in ("algorithm", "dataset")}
    shipped["objective"] = plugins.objectives()
    for kind, names in shipped.items():
        if name in names:
            return kind
    location, _, wanted = name.partition(":")
    if not (location.endswith(".py") or "/" in location or "." in location or wanted):
        close = {kind: near(name, names, 0.6) for kind, names in shipped.items()}
        kind = next((kind for kind, found in close.items() if found), "algorithm")
        known = shipped[kind] if close[kind] else {n: "" for s in shipped.values() for n in s}
        raise ValueError(unknown(kind, name, known))
    module = plugins.load_module("algorithm", location, anywhere=bool(wanted))
    if wanted:
        value = getattr(module, wanted, None)
        if value is None:
            raise ValueError(f"{unknown('name', wanted, _own(module))} (in {location})")
        method = isinstance(value, type) and issubclass(value, Algorithm)
        return "algorithm" if method else "objective"
    if hasattr(module, "Config") and hasattr(module, "load"):
        return "dataset"
    own = _own(module)
    if any(isinstance(value, type) and issubclass(value, Algorithm) for value in own.values()):
        return "algorithm"
    functions = [name for name, value in own.items() if inspect.isfunction(value)]
    if functions:
        raise ValueError(
            f"{name} defines no method and no data set (Config and load); if "
            f"{functions[0]} is an objective, write {name}:{functions[0]}"
        )
    return "algorithm"  # whose loading tells what is missing


def _own(module: types.ModuleType) -> dict[str, Any]:
    """What a module itself defines."""
    found = vars(module).items()
    return {n: v for n, v in found if getattr(v, "__module__", "") == module.__name__}


def of_name(name: str) -> str:
    """What `ssl-selmix list NAME` prints: all that there is of this name.

    Raises:
        ValueError: there is nothing.
    """
    plugin_names = [*plugins.available("algorithm"), *_datasets(), *plugins.objectives()]
    known = [*plugin_names, *plugins.presets(), *plugins.sweeps(), *SHARED, RUN]
    if name == "data":
        raise ValueError(f"the settings of data are those of one of {', '.join(_datasets())}")
    code = any(mark in name for mark in (".", ":", "/"))
    if not code and name not in known:
        raise ValueError(unknown("name", name, known))
    found = [of_section(name)] if name in (*SHARED, RUN) else []
    if code or name in plugin_names:
        show = {"algorithm": of_algorithm, "dataset": of_dataset, "objective": of_objective}
        found.append(show[kind_of(name)](name))
    if name in plugins.presets():
        found.append(f"preset {name} (--preset {name}):\n\n{plugins.preset_text(name)}".rstrip())
    if name in plugins.sweeps():
        content = (files("ssl_selmix") / "configs" / "sweeps" / f"{name}.yaml").read_text("utf-8")
        found.append(f"sweep {name} (ssl-selmix sweep {name}):\n\n{content}".rstrip())
    return "\n\n\n".join(found)


def _datasets() -> list[str]:
    return list(plugins.available("dataset"))


def everything() -> list[tuple[str, Entry]]:
    """All settings of all that is shipped, each with the key by which it is told from others."""
    found = list(entries("", config.Run))
    for name, kind in SHARED.items():
        found += entries(name, kind)
    for name in plugins.available("algorithm"):
        found += entries(name, load_algorithm(name)[1].Config)
    labeled = [(entry.key, entry) for entry in found]
    for name in _datasets():
        of_data = entries("data", plugins.dataset(name).Config)
        labeled += [(f"{entry.key} of {name}", entry) for entry in of_data]
    return labeled


def explain(word: str) -> str:
    """The reference of a setting: of a key, or of all keys that end in this word.

    Raises:
        ValueError: there is no such setting.
    """
    key, found = word.partition("=")[0], everything()
    same = [(label, entry) for label, entry in found if entry.key == key]
    same = same or [(label, e) for label, e in found if f".{e.key}".endswith(f".{key}")]
    if not same:
        close = nearest_keys(key, list(dict.fromkeys(entry.key for _, entry in found)))
        hint = f"did you mean {' or '.join(close[:4])}?" if close else "ssl-selmix list shows names"
        raise ValueError(f"unknown key {key!r}; {hint}")
    groups: dict[tuple[str, str], list[tuple[str, Entry]]] = {}
    for label, entry in same:
        groups.setdefault((entry.meaning, entry.values), []).append((label, entry))
    lines = [line for members in groups.values() for line in _group(members)]
    return "\n".join([*lines, *_in_presets([entry.key for _, entry in same])]).rstrip()


def _group(members: Sequence[tuple[str, Entry]]) -> list[str]:
    """Settings of one meaning, by their defaults."""
    keys, first = [label for label, _ in members], members[0][1]
    defaults: dict[str, list[str]] = {}
    for label, entry in members:
        defaults.setdefault(entry.default, []).append(label)
    lines = [", ".join(keys) if len(keys) < 4 else f"{keys[0]} and {len(keys) - 1} others"]
    lines += _wrapped(first.meaning)
    lines += [f"  may be: {first.values}"]
    for default, names in defaults.items():
        told = f" ({', '.join(names)})" if len(keys) > 1 and len(defaults) > 1 else ""
        lines += _wrapped(f"default: {default}{told}", "  ")
    if first.symbol:
        lines += [f"  symbol: {first.symbol}"]
    sources = list(dict.fromkeys(entry.source for _, entry in members))
    more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
    lines += _wrapped(f"declared by: {', '.join(sources[:3])}{more}", "  ")
    papers = dict.fromkeys(_paper(entry.key) for _, entry in members)
    if len(papers) == 1 and (paper := next(iter(papers))):
        lines += _wrapped(f"method: {paper}", "  ")
    return [*lines, ""]


def _paper(key: str) -> str:
    """What the method that a key belongs to says of its paper; "" of other keys."""
    section = key.partition(".")[0]
    if section not in plugins.available("algorithm"):
        return ""
    return _first_line(load_algorithm(section)[1])


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of a text that fit into the terminal, and are not too long to read."""
    width = min(max(shutil.get_terminal_size((WIDE, 24)).columns, NARROWEST), WIDE)
    lines = textwrap.wrap(text, width - 3, subsequent_indent=indent, break_on_hyphens=False)
    return [f"  {line}" for line in lines]


def _in_presets(keys: Sequence[str]) -> list[str]:
    """What presets set: the same words for each of the keys."""
    values: dict[str, list[str]] = {}
    for preset in plugins.presets():
        settings = config.parse_yaml(plugins.preset_text(preset), preset)
        for key in dict.fromkeys(keys):
            if key in settings:
                values.setdefault(f"{key}={settings[key]}", []).append(preset)
    told = [f"{word} ({', '.join(presets)})" for word, presets in values.items()]
    lines = [line for text in told for line in _wrapped(text, "  ")]
    return ["presets:", *lines] if told else []
