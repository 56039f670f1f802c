"""`ssl-selmix completion SHELL`: a script with all names in it, so that a TAB starts no Python.

The script is made once, from the parsers of the commands and the settings of what is shipped; it
names the version that it is of. bash and zsh share a function that prints candidates; a candidate
`@` means files.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence

from ssl_selmix import __version__
from ssl_selmix.common import plugins
from ssl_selmix.common.arguments import ROOMS, Parser, command, path
from ssl_selmix.runs import reference

SHELLS = ("bash", "zsh", "fish")
PLUGINS = {
    "--algo": ("algorithm",),
    "--then": ("algorithm",),
    "--dataset": ("dataset",),
    "DATASET": ("dataset",),
}
FILES = "@"
SETTINGS = ("settings", "words")  # arguments that take key=value

# What bash and zsh share. $1 is the word to complete, the others are those before it.
CANDIDATES = """_ssl_selmix_candidates() {
  local current="$1" command="" before="" word stages="" dataset=""
  shift
  for word in "$@"; do
    [ -n "$command" ] || case "$word" in -*) ;; *) command="$word" ;; esac
    case "$before" in
      --algo|--then) stages="$stages $word" ;;
      --dataset) dataset="$word" ;;
    esac
    [ "$command" != data ] && [ "$command" != features ] || case "$word" in
      "$command"|-*|*=*) ;;
      *) dataset="${dataset:-$word}" ;;
    esac
    before="$word"
  done
  if [ -z "$command" ]; then
    case "$current" in -*) echo --help; echo --version ;; *) _ssl_selmix_commands ;; esac
    return
  fi
  _ssl_selmix_values "$command" "$before" && return
  case "$current" in
    -*) _ssl_selmix_options "$command" ;;
    *=*) _ssl_selmix_choices "${current%%=*}" ;;
    *) _ssl_selmix_words "$command" "$stages" "$dataset" ;;
  esac
}
"""
BASH = """_ssl_selmix() {
  local line="${COMP_LINE:0:COMP_POINT}" words current candidate
  read -ra words <<< "$line"
  case "$line" in *[[:space:]]) words+=("") ;; esac
  current="${words[${#words[@]}-1]}"
  COMPREPLY=()
  while IFS= read -r candidate; do
    if [ "$candidate" = @ ]; then
      compopt -o filenames 2>/dev/null
      while IFS= read -r candidate; do COMPREPLY+=("$candidate"); done < \\
        <(compgen -f -- "${current##*=}")
    elif [[ "$candidate" == "$current"* ]]; then
      # The shell takes what stands before = for a word of its own.
      case "$candidate" in
        *=) compopt -o nospace 2>/dev/null; COMPREPLY+=("$candidate") ;;
        *=*) COMPREPLY+=("${candidate#*=}") ;;
        *) COMPREPLY+=("$candidate") ;;
      esac
    fi
  done < <(_ssl_selmix_candidates "$current" "${words[@]:1:${#words[@]}-2}")
}
complete -F _ssl_selmix ssl-selmix
"""
ZSH = """_ssl_selmix() {
  local candidate
  local -a plain open
  for candidate in ${(f)"$(_ssl_selmix_candidates "$words[CURRENT]" "${(@)words[2,CURRENT-1]}")"}
  do
    case "$candidate" in
      @) compset -P '*='; _files; return ;;
      *=) open+=("$candidate") ;;
      *) plain+=("$candidate") ;;
    esac
  done
  compadd -S '' -a open
  compadd -a plain
}
(( $+functions[compdef] )) || { autoload -U compinit && compinit }
compdef _ssl_selmix ssl-selmix
"""


def script(shell: str) -> str:
    """The script for one of `SHELLS`."""
    lines = ["#compdef ssl-selmix"] if shell == "zsh" else []  # zsh wants it in the first line
    lines.append(f"# ssl-selmix {__version__}, made by: ssl-selmix completion {shell}")
    if shell == "fish":
        return "\n".join([*lines, *_fish()]) + "\n"
    return "\n".join([*lines, *_tables(), CANDIDATES, BASH if shell == "bash" else ZSH])


def _tables() -> Iterator[str]:
    """Functions that print names, for bash and zsh."""
    parsers = {name: command(name).parser() for name in ROOMS}
    yield _printing("_ssl_selmix_commands", ROOMS)
    yield "_ssl_selmix_options() {\n  case $1 in"
    for name, parser in parsers.items():
        yield _branch(name, [option for action in _of(parser) for option in action.option_strings])
    yield "  esac\n}"
    yield '_ssl_selmix_values() {\n  case "$1 $2" in'
    for name, parser in parsers.items():
        for action in _of(parser):
            if action.option_strings and action.nargs != 0:
                said = "|".join(f"'{name} {option}'" for option in action.option_strings)
                yield _branch(said, values(action))
    yield "    *) return 1 ;;\n  esac\n}"
    yield '_ssl_selmix_words() {\n  case "$1" in'
    for name, parser in parsers.items():
        found = [v for a in _of(parser) if not a.option_strings for v in values(a)]
        if any(action.dest in SETTINGS for action in _of(parser)):
            found += [FILES] if name == "predict" else []
        yield _branch(name, list(dict.fromkeys(found)))
    yield "  esac"
    takers = "|".join(n for n, p in parsers.items() if any(a.dest == "settings" for a in _of(p)))
    every = " ".join(plugins.available("algorithm"))
    yield f'  case "$1" in\n    {takers}) _ssl_selmix_keys "$2" "$3" ;;'
    yield f"    explain) _ssl_selmix_keys '{every}' | tr -d = ;;\n  esac\n}}"
    yield from _keys()


def _keys() -> Iterator[str]:
    """Functions that print the keys of settings, each with its =, and what they may be."""
    sections: dict[str, list[reference.Entry]] = {}
    for label, entry in reference.everything():
        of_data = entry.key.startswith("data.")
        name = label.rpartition(" of ")[2] if of_data else _section(entry.key)
        sections.setdefault(f"data of {name}" if of_data else name, []).append(entry)
    yield "_ssl_selmix_keys() {\n  local stage"
    for name in (reference.RUN, *reference.SHARED):
        yield f"  {_echo(f'{e.key}=' for e in sections[name])}"
    yield '  case "$2" in'
    for name in plugins.available("dataset"):
        yield _branch(name, [f"{e.key}=" for e in sections[f"data of {name}"]])
    every = dict.fromkeys(e.key for n, s in sections.items() if n.startswith("data ") for e in s)
    yield _branch("*", [f"{key}=" for key in every])
    yield "  esac"
    # zsh splits no variable into words: its blanks become ends of lines first.
    yield "  printf '%s\\n' \"$1\" | tr ' ' '\\n' | while IFS= read -r stage; do case \"$stage\" in"
    for name in plugins.available("algorithm"):
        yield _branch(name, [f"{e.key}=" for e in sections[name]])
    yield "  esac; done\n}"
    yield "_ssl_selmix_choices() {\n  case $1 in"
    known: dict[tuple[str, ...], list[str]] = {}
    for entry in dict.fromkeys(entry for found in sections.values() for entry in found):
        if entry.choices:
            known.setdefault(tuple(entry.choices), []).append(entry.key)
    for choices, keys in known.items():
        yield f"    {'|'.join(dict.fromkeys(keys))}) for _v in {' '.join(choices)}; do"
        yield '      echo "$1=$_v"; done ;;'
    yield "    *.objective) for _v in " + " ".join(plugins.objectives()) + "; do"
    yield '      echo "$1=$_v"; done ;;'
    yield f"    *) echo {FILES} ;;\n  esac\n}}"


def _section(key: str) -> str:
    section, dot, _ = key.partition(".")
    return section if dot else reference.RUN


def _of(parser: Parser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]


def values(action: argparse.Action) -> list[str]:
    """What an argument may be; FILES for a path, nothing where only the user knows."""
    option = (action.option_strings or [str(action.metavar)])[0]
    if action.choices:
        return [str(choice) for choice in action.choices]
    if option in PLUGINS:
        return [name for kind in PLUGINS[option] for name in plugins.available(kind)]
    if option == "--preset":
        return [*plugins.presets(), "none"]
    if option == "--objective":
        return list(plugins.objectives())
    if option == "SPEC":
        return [*plugins.sweeps(), FILES]
    if option in ("NAME", "A"):
        kinds = (plugins.available("algorithm"), plugins.available("dataset"), plugins.objectives())
        more = () if option == "A" else (plugins.presets(), plugins.sweeps(), reference.SHARED)
        return [*dict.fromkeys(name for kind in (*kinds, *more) for name in kind)]
    return [FILES] if action.type is path or option == "--trust" else []


def _echo(words: Iterator[str] | Sequence[str] | Mapping[str, str]) -> str:
    said = " ".join(shlex.quote(word) for word in words)
    return f"printf '%s\\n' {said}" if said else ":"


def _branch(pattern: str, words: Sequence[str]) -> str:
    return f"    {pattern}) {_echo(words)} ;;"


def _printing(name: str, words: Mapping[str, str]) -> str:
    return f"{name}() {{ {_echo(words)}; }}"


def _fish() -> Iterator[str]:
    yield "complete -c ssl-selmix -f"
    first = "complete -c ssl-selmix -n __fish_use_subcommand"
    yield f"{first} -l version -d 'print it'"
    keys = [f"{entry.key}=" for _, entry in reference.everything()]
    pairs = [f"{e.key}={choice}" for _, e in reference.everything() for choice in e.choices]
    pairs += [f"{s}.objective={name}" for s in ("selmix", "csst") for name in plugins.objectives()]
    for name in ROOMS:
        parser = command(name).parser()
        told = shlex.quote((parser.description or "").partition(".")[0])
        yield f"{first} -a {name} -d {told}"
        here = f"complete -c ssl-selmix -n '__fish_seen_subcommand_from {name}'"
        for action in _of(parser):
            found = values(action)
            if action.option_strings:
                long = [o[2:] for o in action.option_strings if o.startswith("--")]
                said = f"{here} -l {long[0]} -d {shlex.quote(action.help or '')}"
                if action.nargs == 0:
                    yield said
                elif found == [FILES]:
                    yield f"{said} -r -F"
                else:
                    yield f"{said} -x -a {shlex.quote(' '.join(found))}"
            elif words := [word for word in found if word != FILES]:
                yield f"{here} -a {shlex.quote(' '.join(words))}"
            if not action.option_strings and (FILES in found or action.dest == "words"):
                yield f"{here} -F"
            if action.dest == "settings" or (name == "explain" and action.dest == "keys"):
                yield f"{here} -a {shlex.quote(' '.join(dict.fromkeys([*keys, *pairs])))}"
