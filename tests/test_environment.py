"""environment.yml as conda and pip read it: each line parses, and what the project needs can be reached from it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import rattler
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("jupyterlab", "papermill", "numpy", "matplotlib", "gguf", "llama-cpp-python", "nbconvert", "scrapbook")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
# The machines of the pinned ISA targets, with the interpreter that environment.yml asks for.
MACHINES = {
    "x86_64": {"platform_machine": "x86_64", "sys_platform": "linux", "os_name": "posix", "platform_system": "Linux"},
    "aarch64": {"platform_machine": "aarch64", "sys_platform": "linux", "os_name": "posix", "platform_system": "Linux"},
}
GOOD = """name: x
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
      - -r requirements.txt
"""
LOCKED = "numpy==2.4.6 \\\n    --hash=sha256:" + "0" * 64 + "\n"


def conda_problems(text: str) -> list[str]:
    """Return what keeps conda from reading an environment, one sentence each."""
    found: Mapping[str, Any] = yaml.safe_load(text)
    problems = [f"unknown key {key}" for key in sorted(set(found) - {"name", "channels", "dependencies"})]
    channels, entries = found.get("channels"), found.get("dependencies") or []
    if not isinstance(channels, list) or not channels or not all(isinstance(c, str) for c in channels):
        problems.append("channels is no list of names")
    for entry in entries:
        if not isinstance(entry, str):
            continue
        try:
            spec = rattler.MatchSpec(entry, strict=True)
        except Exception as error:  # noqa: BLE001 - py-rattler's errors share no class that it exports
            problems.append(f"{entry}: {error}")
        else:
            if spec.name is None or spec.namespace is not None:
                problems.append(f"{entry}: names no package")
    sections = [entry for entry in entries if not isinstance(entry, str)]
    if len(sections) != 1 or list(sections[0]) != ["pip"] or entries[-1] is not sections[0]:
        problems.append("there must be one pip section, and it comes last: conda packages are there before pip runs")
    elif sections[0]["pip"] != ["-r requirements.txt"]:
        problems.append(f"the pip section installs {sections[0]['pip']}, not the locked packages")
    if "pip" not in entries:
        problems.append("pip is not among the conda packages")
    return problems


def lines_of(text: str) -> list[str]:
    """Return the logical lines of a requirements file: comments gone, continuations joined."""
    joined = re.sub(r"\\\n", " ", text)
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]


def locked(text: str) -> list[Requirement]:
    """Return the entries of a requirements file that has one version and at least one hash on each line.

    Raises:
        ValueError: a line without a hash, or without exactly one version.
    """
    entries = []
    for line in lines_of(text):
        requirement = Requirement(re.split(r"\s--hash=", line)[0])
        specifiers = list(requirement.specifier)
        if not HASH.search(line) or HASH.sub("", line).count("--hash"):
            raise ValueError(f"{requirement.name} has no SHA-256")
        if len(specifiers) != 1 or specifiers[0].operator != "==" or "*" in specifiers[0].version:
            raise ValueError(f"{requirement.name} is not pinned to one version")
        entries.append(requirement)
    return entries


def not_pinned(asked: str, lock: str, environment: Mapping[str, str]) -> list[str]:
    """Return the entries of ``asked`` that ``lock`` does not install on a machine."""
    applying = [r for r in locked(lock) if r.marker is None or r.marker.evaluate(dict(environment))]
    versions = {r.name: next(iter(r.specifier)).version for r in applying}
    wanted = [Requirement(line) for line in lines_of(asked)]
    return [str(r) for r in wanted if r.name not in versions or versions[r.name] not in r.specifier]


def conda_python(text: str) -> str:
    """Return the version of the interpreter that an environment asks for."""
    entries = yaml.safe_load(text)["dependencies"]
    return next(entry.removeprefix("python=") for entry in entries if str(entry).startswith("python="))


def test_environment_is_read_by_conda() -> None:
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert conda_problems(text) == []
    assert len([entry for entry in yaml.safe_load(text)["dependencies"] if isinstance(entry, str)]) >= 5


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("  - pip\n", "  - pip\n  - numpy=>2\n", "numpy=>2"),
        ("  - pip\n", "  - pip\n  - numpy >=2,<\n", "numpy >=2,<"),
        ("python=3.11", "python==", "python=="),
        ("  - pip\n", "  - pip\n  - make:1\n", "make:1"),
        ("  - conda-forge", "  conda-forge", "channels"),
        ("  - pip\n", "", "not among the conda packages"),
        ("      - -r requirements.txt\n", "      - numpy\n", "not the locked packages"),
        ("      - -r requirements.txt\n", "      - -r requirements.txt\n  - make\n", "comes last"),
        ("name: x", "prefix: x", "unknown key prefix"),
    ],
)
def test_damaged_environment_is_refused(old: str, new: str, named: str) -> None:
    assert conda_problems(GOOD) == []
    assert old in GOOD
    assert any(named in problem for problem in conda_problems(GOOD.replace(old, new)))


@pytest.mark.parametrize("machine", MACHINES)
def test_lock_installs_every_direct_dependency_on_the_interpreter_of_the_environment(machine: str) -> None:
    python = conda_python((ROOT / "environment.yml").read_text(encoding="utf-8"))
    environment = MACHINES[machine] | {"python_version": python, "python_full_version": f"{python}.9"}
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    asked, lock = (ROOT / "requirements.in").read_text(), (ROOT / "requirements.txt").read_text()
    assert not_pinned(asked, lock, environment) == []
    assert len(locked(lock)) > 100


@pytest.mark.parametrize("name", NEEDED)
def test_what_a_user_needs_is_reachable(name: str) -> None:
    asked = {Requirement(line).name for line in lines_of((ROOT / "requirements.in").read_text())}
    binding = tomllib.loads((ROOT / "fixtures" / "gguf_parity.toml").read_text())["llama_cpp"]["binding"]
    pinned = Requirement(binding)
    assert [specifier.operator for specifier in pinned.specifier] == ["=="]
    assert name in asked | {pinned.name}


@pytest.mark.parametrize(
    ("lock", "message"),
    [
        ("numpy==2.4.6\n", "no SHA-256"),
        (LOCKED.replace("sha256:0", "sha256:"), "no SHA-256"),
        (LOCKED.replace("==", ">="), "not pinned"),
        (LOCKED.replace("2.4.6", "2.4.*"), "not pinned"),
    ],
)
def test_damaged_lock_is_refused(lock: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        locked(lock)


def test_lock_that_misses_a_dependency_is_refused() -> None:
    environment = {"python_full_version": "3.11.9"}
    assert not_pinned("numpy==2.4.6\n", LOCKED, environment) == []
    assert not_pinned("numpy==2.4.7\n", LOCKED, environment) == ["numpy==2.4.7"]
    assert not_pinned("numpy\ngguf  # why\n", LOCKED, environment) == ["gguf"]
    only_later = LOCKED.replace("2.4.6 ", "2.4.6 ; python_full_version >= '3.12' ")
    assert not_pinned("numpy\n", only_later, environment) == ["numpy"]
