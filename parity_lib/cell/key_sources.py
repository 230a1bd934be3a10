"""The sources that a part of what the reference computes depends on, found by following imports, not from a list."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).parents[1]
ROWS = (  # what asks for rows and keeps them; the engine that computes them, and the process that it runs in
    "cell/reference.py",
    "engines/llamacpp/engine.py",
    "engines/worker/server.py",
)
MORE = {  # parts that are not rows, but what was measured on rows, or while they were made
    "limits": ("cell/t4_limits.py", "engines/llamacpp/perturb.py"),
    "spread": ("cell/reference_self.py",),
    "relations": ("cell/reference_self.py",),
    "dispatch": ("cell/t7_isa.py", "engines/llamacpp/dispatch.py"),
}
BY_VALUE = ("models/", "cell/request.py")  # not followed: what they make is in the key itself, files by their hash


def source_sha256(part: str, library: Path = LIBRARY) -> str:
    """Return a digest over the sources that can change a part of what the reference computes."""
    digest = hashlib.sha256()
    for name in sources(part, library):
        content = (library / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


@cache
def sources(part: str, library: Path = LIBRARY) -> tuple[str, ...]:
    """Return the files that a part depends on, relative to the library and sorted, ``numerics/metrics.py``."""
    found, todo = set[str](), {*ROWS, *MORE.get(part, ())}
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= {other for other in _imported(library / name, library) if not other.startswith(BY_VALUE)} - found
    return tuple(sorted(found))


@cache
def _imported(path: Path, library: Path) -> frozenset[str]:
    """Return the library's files that a file imports, inside of functions too."""
    found = set[str]()
    for names in _names(path):
        files = {"/".join(name.split(".")[1:]) + ".py" for name in names}
        files = {name for name in files if (library / name).is_file()}
        assert files, f"{path}: {names[-1]} is not in a module, so what it imports cannot be followed"
        found |= files
    return frozenset(found)


def _names(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield what a file imports of the library; of ``from a.b import c`` both names that may be the module's."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            names = [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import cannot be followed"
            module = node.module or ""
            names = [(module, f"{module}.{alias.name}") for alias in node.names]
        yield from (each for each in names if each[-1].startswith("parity_lib."))
