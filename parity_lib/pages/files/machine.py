"""The machine on one page: what works, which ISA targets it can run, which files and stacks are the pinned ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from parity_lib.base.names import Outcome
from parity_lib.engines.machine import missing_flags
from parity_lib.judge.t7_isa import side_word
from parity_lib.model_file.digest import sha256_file
from parity_lib.models.ensure import ModelStatus
from parity_lib.pages.cell.t7_isa import proof_tables
from parity_lib.pages.kit.box import box
from parity_lib.pages.kit.fragment import EMPTY, Fragment, details, note, paragraph
from parity_lib.pages.kit.outcomes import style_of
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, short, size
from parity_lib.records.isa_evidence import BURN, LLAMA_CPP, UNPROVEN, IsaProof
from parity_lib.records.pins import FilePin, Pins


class Check(Protocol):
    """One check, as ``cli.doctor.examine`` gives it; ``ok`` is None for a plain fact."""

    @property
    def name(self) -> str: ...  # noqa: D102 - said above
    @property
    def ok(self) -> bool | None: ...  # noqa: D102 - said above
    @property
    def found(self) -> str: ...  # noqa: D102 - said above
    @property
    def next_step(self) -> str: ...  # noqa: D102 - said above
    @property
    def blocks(self) -> bool: ...  # noqa: D102 - said above


def machine_header(checks: Sequence[Check]) -> Fragment:
    """Return whether the default plan can run here, which burn would, and what to do first if it cannot."""
    blocking = [check for check in checks if check.blocks]
    title = "This machine can run the default plan"
    if blocking:
        title = f"This machine cannot run the default plan: {', '.join(check.name for check in blocking)}"
    facts = [f"{c.name}: {c.found}." for c in checks if c.name in ("machine", "ISA target of this machine")]
    burn = [f"Which burn: {c.found}." for c in checks if c.name == "burn extension"]
    steps = [f"Next: {check.next_step}." for check in blocking if check.next_step] or ["Next: make nightly."]
    sentences = [*facts, *burn, *steps]
    shown = style_of(Outcome.INVALID if blocking else Outcome.PARITY)
    return box(shown, title, sentences=[short(sentence) for sentence in sentences], tab="Machine and pins")


def check_table(checks: Sequence[Check]) -> Fragment:
    """Return every check, what is missing first."""
    order = sorted(checks, key=lambda check: (not check.blocks, check.ok is not False))
    columns = (Column("what"), Column("state"), Column("found"), Column("next"))
    rows = [[c.name, _state(c), short(c.found), c.next_step if c.ok is False and c.next_step else NONE] for c in order]
    return table(columns, rows, marks=["bad" if check.blocks else "" for check in order], css="checks")


def target_table(pins: Pins, proofs: Sequence[IsaProof] = ()) -> Fragment:
    """Return each ISA target: can it run here, what was seen of it, the flags that llama.cpp is built with.

    Args:
        pins: with the ISA targets.
        proofs: of both engines on the ISA targets of this machine, as ``cell.isa_machine`` takes them.
    """
    columns = (
        *(Column("target"), Column("this CPU"), Column("observed: burn"), Column("observed: llama.cpp")),
        *(Column("CPU flags needed"), Column("CMake")),
    )
    rows = []
    for name, target in pins.llama_cpp.targets.items():
        lacking = missing_flags(target.cpu_flags)
        found = f"lacks {', '.join(lacking)} of llama.cpp's build" if lacking else "has all of it"
        lists = (target.cpu_flags, [*pins.llama_cpp.cmake_args, *target.cmake_args])
        flags = [details(f"{len(words)} flags", paragraph(" ".join(words))).html for words in lists]
        seen = [_seen(proofs, name, engine) for engine in (BURN, LLAMA_CPP)]
        rows.append([name, found, *seen, *flags])
    unproven = "Requested and observed are two things: an ISA target is unproven unless sampled instructions show it."
    sampled = proof_tables([p for p in proofs if p.evidence.sampled is not None]) if proofs else EMPTY
    return table(columns, rows, css="targets") + note(unproven) + sampled


def _seen(proofs: Sequence[IsaProof], target: str, engine: str) -> str:
    """Return what was observed of an engine on an ISA target: proven, something else, or why not."""
    found = next((p for p in proofs if (p.evidence.requested, p.evidence.engine) == (target, engine)), None)
    if found is None:
        return UNPROVEN
    word = side_word(found)
    told = word if found.proven and word == "proven" else f"{word}: {short(found.reason)}"
    return told if found.observed == word else f"{found.observed}, {told}"


def file_table(files: Sequence[ModelStatus]) -> Fragment:
    """Return each pinned model file: expected and found, and its F32 twin, which is what rung T4 stands on."""
    columns = (
        Column("file"),
        Column("state"),
        Column("expected SHA-256"),
        Column("found SHA-256"),
        Column("size", numeric=True),
        Column("F32 twin expected"),
        Column("F32 twin found"),
    )
    rows = [
        [
            f"{status.pin.id} {status.pin.quant}",
            status.state,
            _expected(status.pin.file),
            short(sha256_file(status.path)) if status.path.exists() else NONE,
            size(status.pin.file.bytes),
            _expected(status.pin.twin),
            short(sha256_file(status.twin)) if status.twin is not None else NONE,
        ]
        for status in files
    ]
    return table(columns, rows, marks=["bad" if status.state == "differs" else "" for status in files], css="files")


def stack_table(pins: Pins) -> Fragment:
    """Return what may stand under burn, with exact versions."""
    columns = (Column("stack"), Column("what"), Column("crates"))
    rows = [[s.id, s.what, ", ".join(f"{k} {v}" for k, v in s.crates.items())] for s in pins.stacks.values()]
    return table(columns, rows, css="stacks")


def _state(check: Check) -> str:
    if check.ok is None:
        return "fact"
    return "ok" if check.ok else "✗ missing" if check.blocks else "not here"


def _expected(pin: FilePin | None) -> str:
    return NONE if pin is None else " or ".join(short(digest) for digest in pin.known) or NONE
