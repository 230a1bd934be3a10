"""What README and docs name exists: commands and options, make targets, modules, links, files, what a run writes."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

import parity_lib
from parity_lib import pages
from parity_lib.cli.app import cli
from parity_lib.records.pins import load_pins
from parity_lib.records.self_spread_pins import load_spreads

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "reports" / "README.md", *(ROOT / "docs").rglob("*.md")]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
OURS = ("notebooks/", "parity_lib/", "fixtures/", "docs/", "tests/", "reports/README", ".github/", ".ci/")


def shell_lines(text: str) -> Iterator[str]:
    """Yield each command of the ``sh`` blocks of a page, without its comment."""
    for language, body in FENCE.findall(text):
        if language == "sh":
            yield from (line.split("  #")[0].strip() for line in body.splitlines() if line.strip())


def inline_code(text: str) -> Iterator[str]:
    """Yield each stretch of inline code of a page."""
    yield from INLINE.findall(FENCE.sub("", text))


def parity_words(line: str) -> list[str] | None:
    """Return the arguments of a line that calls ``parity``, or None for another line."""
    line = re.sub(r"^(?:[A-Z_]+=\S* )*", "", re.split(r"\s(?:\||&&|;|>)\s|;", line)[0])
    return shlex.split(line)[1:] if re.match(r"(?:\S*/)?parity\s", line) else None


def parse(words: list[str]) -> None:
    """Parse a command line as ``parity`` would, and run nothing.

    Raises:
        click.ClickException: there is no such command or option, or an argument is missing.
    """
    command: click.Command = cli
    context = command.make_context("parity", list(words))
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        context = command.make_context(name or "", rest, parent=context)


def wrong_commands(page: Path) -> list[str]:
    """Return each ``parity`` line of a page that click refuses, with click's words."""
    text = page.read_text(encoding="utf-8")
    wrong = []
    for line, whole in [*((line, True) for line in shell_lines(text)), *((code, False) for code in inline_code(text))]:
        try:
            words = parity_words(line)
            if words and not any(word.startswith("-") for word in words[:1]):
                parse(words)
        except click.exceptions.Exit:
            continue
        except click.BadParameter as error:  # inline code and metavars stand for values that the reader fills in
            if whole and isinstance(error, click.MissingParameter):
                wrong.append(f"{page.name}: {line}: {error.format_message()}")
        except (click.ClickException, ValueError) as error:
            wrong.append(f"{page.name}: {line}: {getattr(error, 'message', error)}")
    return wrong


def test_every_command_line_in_the_docs_is_one_that_parity_takes() -> None:
    found = [line for page in PAGES for line in shell_lines(page.read_text(encoding="utf-8")) if parity_words(line)]
    assert len(found) > 25
    assert not [text for page in PAGES for text in wrong_commands(page)]


@pytest.mark.parametrize("line", ["parity runn a", "parity run a Q8_0 --bogus", "parity run"])
def test_a_command_that_does_not_exist_is_seen(line: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```sh\n{line}\n```\n", encoding="utf-8")
    assert len(wrong_commands(page)) == 1


def test_every_make_target_and_module_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        code = [*shell_lines(text), *inline_code(text)]
        for line in code:
            for target in re.findall(r"(?:^|\s)make ([a-z-]+)", line):
                assert target in targets, f"{page.name} names make {target}"
            for module in re.findall(r"python3? -m (parity_lib[\w.]*)", line):
                assert importlib.util.find_spec(module) is not None, f"{page.name} names {module}"


def test_every_link_and_every_path_of_this_repository_leads_somewhere() -> None:
    lost = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        links = [link.split("#")[0] for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]
        lost += [f"{page.name}: ({link})" for link in links if link and not (page.parent / link).exists()]
        for code in inline_code(text):
            path = code.split("::")[0].split(":")[0].rstrip("/")
            if path.startswith(OURS) and re.fullmatch(r"[\w./-]+", path) and not (ROOT / path).exists():
                lost.append(f"{page.name}: `{code}`")
    assert not lost


@pytest.mark.parametrize("package", [parity_lib, pages], ids=lambda package: package.__name__)
def test_every_public_name_can_be_had(package: SimpleNamespace) -> None:
    assert len(package.__all__) > 10
    assert not [name for name in package.__all__ if getattr(package, name, None) is None]


def test_every_machine_class_that_has_a_pin_is_described() -> None:
    """Each machine class with a pin in fixtures has a row in docs/machines.md."""
    pins = load_pins()
    files = [file for pin in pins.models for file in (pin.file, pin.twin, pin.bf16_twin) if file is not None]
    measured = {spread.machine_class for spread in load_spreads().pins}.union(*(file.made for file in files))
    described = set(re.findall(r"^\| `([^`]+)`", (ROOT / "docs" / "machines.md").read_text("utf-8"), re.MULTILINE))
    assert measured - described == set()
