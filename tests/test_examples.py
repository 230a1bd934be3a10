"""The examples (``>>>``) in the library's docstrings are true, and its main functions without an engine have one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import parity_lib
from parity_lib.numerics import metrics

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "parity_lib"
SHOWN = {"CellRequest", "ParityError", "Rung", "load_prompts", "load_tolerances", "load_verdict"}  # of the public names


def modules() -> list[ModuleType]:
    """Return every module of the library with an example in it."""
    paths = [path for path in sorted(LIBRARY.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    return [importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in paths]


def test_every_example_is_true(tmp_path: Path) -> None:
    wrong: list[str] = []
    results = []
    for module in modules():
        runner = doctest.DocTestRunner(verbose=False)
        for test in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs={"folder": tmp_path}):
            runner.run(test, out=wrong.append)
        results.append(runner.summarize(verbose=False))
    assert not any(result.failed for result in results), "".join(wrong)
    assert sum(result.attempted for result in results) > 60


def test_a_wrong_example_is_seen() -> None:
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda _: None).failed == 1


def test_main_functions_have_an_example() -> None:
    names = {name for name in parity_lib.__all__ if ">>> " in (inspect.getdoc(getattr(parity_lib, name)) or "")}
    assert names >= SHOWN
    own = [f for f in vars(metrics).values() if inspect.isfunction(f) and f.__module__ == metrics.__name__]
    public = [function for function in own if not function.__name__.startswith("_")]
    without = [function.__name__ for function in public if ">>> " not in (function.__doc__ or "")]
    assert len(public) > 6
    assert without == ["delta_of_tops"], "its six arrays do not make a short example"
