"""Arrows point down: a room imports only from rooms on lower floors, and no modules form a circle.

Imports inside functions and under TYPE_CHECKING count: a circle of meaning is as hard to read as
one that fails. Rooms are the packages and modules right below `ssl_selmix`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import ssl_selmix

PACKAGE = Path(ssl_selmix.__file__).parent
FLOORS = (
    {"common", "metrics", "losses"},  # know no objective, no image and no network
    {"objectives", "label_shift", "splits", "images", "models"},
    {"gains", "augment"},
    {"data", "decision"},
    {"algorithm", "datasets"},  # the contract of a method, and where images come from
    {"methods", "selmix", "training"},
    {"algorithms", "runs"},
    {"audit", "contract", "finetuning", "deploy", "compare", "sweep"},  # what users call
    {"__init__", "forward"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.count("."))
        elif isinstance(node, ast.ImportFrom) and node.module:
            top, _, place = node.module.partition(".")
            if top == "ssl_selmix":
                names = (f"{place}.{a.name}".strip(".") for a in node.names)
                yield from (name if name in MODULES else place for name in names)


ARROWS = {
    module: {place for place in imported(path) if place in MODULES} - {module}
    for module, path in MODULES.items()
}


def test_every_room_has_a_floor_and_every_floor_its_rooms() -> None:
    assert {module.partition(".")[0] for module in MODULES} == FLOOR.keys()
    assert sum(map(len, ARROWS.values())) > 400  # the reading of imports found some


def test_arrows_point_down() -> None:
    def room(module: str) -> str:
        return module.partition(".")[0]

    upward = [
        f"{module} -> {place}"
        for module, places in ARROWS.items()
        for place in sorted(places)
        if room(place) != room(module) and FLOOR[room(place)] >= FLOOR[room(module)]
    ]
    assert not upward


def test_no_modules_form_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for place in sorted(ARROWS[module]):
                visit(place, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
