"""The guard of the markers ``engine`` and ``slow``: a test that starts an engine or a notebook without one fails.

Tests without a marker run first, so that a shared fixture is made by the first test that uses it without one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parity_lib.engines.worker.client import SERVER

NOTEBOOK = "parity_lib.night.notebook"
QUICK = "not engine and not slow"  # as the Makefile selects
WHOLE_FILE = re.compile(r"^pytestmark = pytest\.mark\.(?:engine|slow)$", re.MULTILINE)
EXTENSIONS = {"llama_cpp", "burn_gguf"}  # libraries of the engines, where a test loads them into its own process
started: list[str] = []  # since the set-up of the running test began


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "subprocess.Popen" and isinstance(arguments[1], list | tuple):
        started.extend(word for word in arguments[1] if word in (SERVER, NOTEBOOK))


sys.addaudithook(_watch)


def needed(before: set[str]) -> str:
    """Return the marker that the running test needs, or "": ``before`` are the extensions loaded before it."""
    if NOTEBOOK in started:
        return "slow"
    return "engine" if started or (EXTENSIONS & sys.modules.keys()) - before else ""


def marked(item: pytest.Item, marker: str) -> bool:
    """Return whether a test has a marker; one that is slow may start an engine."""
    return any(item.get_closest_marker(name) for name in {marker, "slow"})


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out, in a quick run, the files in which every test has a marker: importing them takes longer than it."""
    if config.option.markexpr != QUICK or collection_path.suffix != ".py":
        return None
    return WHOLE_FILE.search(collection_path.read_text(encoding="utf-8")) is not None or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the tests with a marker behind those without."""
    items.sort(key=lambda item: marked(item, "engine"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Forget what earlier tests have started."""
    started.clear()
    item.stash[LOADED] = EXTENSIONS & sys.modules.keys()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that has started, itself or by a fixture, what its markers do not name."""
    given = yield
    marker = needed(item.stash[LOADED])
    if marker and not marked(item, marker):
        pytest.fail(f"it started {sorted(set(started)) or 'an engine in this process'}: add pytest.mark.{marker}")
    return given


LOADED = pytest.StashKey[set[str]]()
