"""Print the map of the library: rooms, the arrows between them, circles, and small modules: ``make map``.

A room is what lies directly under the package. An arrow is a pair of rooms of which one imports the other.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import grimp

PACKAGE = "parity_lib"
SMALL = 60  # lines below which a module with one importer has to say why it stands apart
REASON = "because"  # a docstring with this word gives a reason
APART = re.compile(r"\.t\d_\w+$|\.cli\.")  # each rung and each command has a module of its own


@dataclass(frozen=True, slots=True)
class Map:
    """What imports what in one package."""

    modules: tuple[str, ...]
    arrows: Mapping[tuple[str, str], int]  # (importing room, imported room) -> imports
    circles: tuple[tuple[str, ...], ...]  # modules that import each other
    room_circles: tuple[tuple[str, ...], ...]
    small: tuple[tuple[str, int, str], ...]  # module, lines, its one importer

    @property
    def rooms(self) -> tuple[str, ...]:
        """Return the rooms by name."""
        return tuple(sorted({room_of(module) for module in self.modules} - {""}))


def room_of(module: str) -> str:
    """Return the room of a module; empty for the package itself and its ``__main__``.

    >>> room_of("parity_lib.engines.burn.engine")
    'engines'
    """
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else ""


def draw(root: Path) -> Map:
    """Return the map of the package that lies in a folder."""
    sys.path.insert(0, str(root))
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    pairs = ((room_of(a), room_of(b)) for a, found in imports.items() for b in found)
    arrows = Counter((a, b) for a, b in pairs if a and b and a != b)
    rooms = {room: {b for a, b in arrows if a == room} for room in {a for pair in arrows for a in pair}}
    files = {module: file for module in graph.modules if (file := _file(root, module)) is not None}
    return Map(
        modules=tuple(sorted(files)),
        arrows=dict(arrows),
        circles=_circles(imports),
        room_circles=_circles(rooms),
        small=tuple(
            (module, n_lines, importers[0])
            for module, file in sorted(files.items())
            if file.name != "__init__.py"
            and not APART.search(module)
            and len(importers := sorted(graph.find_modules_that_directly_import(module))) == 1
            and (n_lines := len((text := file.read_text(encoding="utf-8")).splitlines())) < SMALL
            and REASON not in (ast.get_docstring(ast.parse(text)) or "")
        ),
    )


def _file(root: Path, module: str) -> Path | None:
    path = root / module.replace(".", "/")
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)


def _circles(arrows: Mapping[str, Collection[str]]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of nodes from each of which every other one of the group is reached."""
    reached = {node: _reached(arrows, node) for node in arrows}
    groups = {frozenset(b for b in reached[a] if a in reached.get(b, ())) for a in arrows if a in reached[a]}
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def _reached(arrows: Mapping[str, Collection[str]], node: str) -> set[str]:
    found: set[str] = set()
    todo = list(arrows[node])
    while todo:
        if (other := todo.pop()) not in found:
            found.add(other)
            todo += arrows.get(other, ())
    return found


def main(arguments: list[str]) -> int:
    """Print the map of the package in a folder; return the exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {PACKAGE}.cli.map", description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=Path.cwd(), help="folder that holds the package")
    parser.add_argument("--arrows", action="store_true", help="list every arrow")
    options = parser.parse_args(arguments)
    found = draw(options.root.resolve())
    sizes = Counter(room_of(module) for module in found.modules)
    print(f"{len(found.modules)} modules in {len(found.rooms)} rooms, {len(found.arrows)} arrows between rooms")  # noqa: T201
    for room in found.rooms:
        targets = sorted(b for a, b in found.arrows if a == room)
        print(f"  {room:16} {sizes[room]:3} modules -> {', '.join(targets) or '-'}")  # noqa: T201
    if options.arrows:
        for (a, b), n in sorted(found.arrows.items()):
            print(f"  {a} -> {b}: {n} imports")  # noqa: T201
    for what, circles in (("circles of modules", found.circles), ("circles of rooms", found.room_circles)):
        print(f"{len(circles)} {what}", *(f"  {' '.join(circle)}" for circle in circles), sep="\n")  # noqa: T201
    print(f"{len(found.small)} modules below {SMALL} lines with one importer, no reason given")  # noqa: T201
    for module, n_lines, importer in found.small:
        print(f"  {module} {n_lines} lines, for {importer}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
