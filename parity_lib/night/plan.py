"""A plan: which cells a nightly run compares, the expected outcome of each, and its time limit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from parity_lib.base.choice import choose
from parity_lib.base.errors import FixtureError, PinError, UsageError
from parity_lib.base.names import Compute, Isa, Rung
from parity_lib.base.surroundings import kind_of
from parity_lib.base.toml_table import Table, fixture_path, read_toml
from parity_lib.engines import machine
from parity_lib.engines.targets import sides
from parity_lib.records.pins import load_pins

SCHEMA = "parity/plan/1"
HOST = "host"  # as ``isa``: the widest ISA target that this machine can run
PARITY, DIVERGED = "parity", "diverged"
EXPECTED = "a divergence was expected"  # begins the cause of a cell that came out otherwise than planned
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@dataclass(frozen=True, slots=True)
class PlanCell:
    """One cell of a plan."""

    model: str
    quant: str
    isa: str  # an ISA target, or "host"
    stack: str
    compute: str
    notebook: str  # name without suffix, in ``notebooks/``
    prompts: str  # name of a file beside ``prompts.toml``, or "" for that one
    required: bool  # if not, a cell that cannot run is a NOT_RUN
    expect: str  # PARITY or DIVERGED
    reason: str  # why DIVERGED is expected
    at: str  # the lowest rung that is expected to break
    fault: str  # a seeded fault in the candidate, or ""
    control: bool  # a red control: not caught is INVALID
    limit_s: int  # wall clock of the notebook
    require_isa: bool  # both engines must have run the ISA target, and T7 must have seen it; else T7 reports
    where_possible: bool  # not in the plan of a machine on which no engine can run the ISA target

    @property
    def name(self) -> str:
        """Return the cell in one word, for logs and for ``--only``."""
        parts = [self.model, self.quant, self.isa, self.stack, self.compute]
        parts += ["control"] if self.control else []
        parts += [self.fault.replace(" ", "")] if self.fault else []
        return "-".join(parts).replace("/", "_")

    def content(self) -> str:
        """Return the SHA-256 of everything in this entry that can change a result (64 hex digits)."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Plan:
    """The cells of a nightly run, in the order in which they run."""

    name: str
    title: str
    headline: str  # what a reader must know about the whole run
    cells: tuple[PlanCell, ...]
    sha256: str  # of the file's bytes
    path: Path
    complete: bool = False  # refused as a whole where a required cell cannot run
    jobs: int = 1  # cells at once, where the command line does not say
    stacks: Mapping[str, str] = field(default_factory=dict)  # wanted, not pinned by this version: id -> what it is

    def only(self, glob: str) -> tuple[PlanCell, ...]:
        """Return the cells whose name matches a shell pattern; a plain word matches anywhere in the name.

        Raises:
            UsageError: none does.
        """
        return choose(glob, [(cell.name, cell) for cell in self.cells], "cell of the plan", self.path.name)[0]


def plan_path(name: str) -> Path:
    """Return the path of a plan given by file or by name (``smoke``, ``tiny``, ``acceptance``).

    Raises:
        UsageError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = fixture_path("gguf_parity.toml").parent / "plans"
    shipped = folder / f"{name}.toml"
    if shipped.is_file():
        return shipped
    raise UsageError(
        "there is no such plan",
        place=name,
        expected=f"a file, or one of {', '.join(sorted(p.stem for p in folder.glob('*.toml')))}",
        found=kind_of(path) or "neither",
    )


def load_plan(path: Path | str, notebooks: Path = NOTEBOOKS, cpuinfo: Path = machine.CPUINFO) -> Plan:
    """Return a plan whose notebooks lie in ``notebooks``, without the cells that this machine leaves out.

    Raises:
        FixtureError: unreadable, another version, an unknown or missing key, no cell, a cell twice, an expected
            divergence without its reason, a control without a fault, a notebook that is not there, or a stack
            that no cell wants.
    """
    path = Path(path)
    table, sha256 = read_toml(path)
    table.schema(SCHEMA)
    title, headline = table.text("title"), table.text("headline")
    defaults = table.table("defaults", {})
    shared = _Defaults(defaults)
    listed = tuple(_cell(entry, shared, notebooks) for entry in table.tables("cell", []))
    cells = tuple(cell for cell in listed if not cell.where_possible or _is_possible(cell, cpuinfo))
    complete, stacks = table.boolean("complete", False), table.strings("stacks", {})
    jobs = table.integer("jobs", 1, least=1)
    table.done()
    if not cells:
        raise FixtureError("the plan is empty", place=path, expected="at least one [[cell]]", found="none")
    _check_unique(cells, path)
    unused = sorted(set(stacks) - {cell.stack for cell in cells})
    if unused:
        raise FixtureError("declares a stack that no cell wants", place=path, found=", ".join(unused))
    return Plan(path.stem, title, headline, cells, sha256, path, complete, jobs, stacks)


def _is_possible(cell: PlanCell, cpuinfo: Path) -> bool:
    """Return whether some engine can run a cell's ISA target on this machine."""
    try:
        sides(load_pins(), cell.stack, cell.isa, cpuinfo)
    except PinError:
        return False
    return True


class _Defaults:
    """The plan's defaults for its cells; each value is checked once, here."""

    def __init__(self, table: Table) -> None:
        self.isa = table.one_of("isa", [HOST, *Isa], HOST)
        self.stack = table.text("stack", "crates-io")
        self.compute = table.one_of("compute", list(Compute), Compute.F32)
        self.notebook = table.text("notebook", "02_logits")
        self.prompts = table.text("prompts", "")
        self.required = table.boolean("required", True)
        self.limit_s = table.integer("limit_s", 1800, least=1)
        table.done()


def _cell(table: Table, shared: _Defaults, notebooks: Path) -> PlanCell:
    fault, isa = table.text("fault", ""), table.one_of("isa", [HOST, *Isa], shared.isa)
    cell = PlanCell(
        model=table.text("model"),
        quant=table.text("quant"),
        isa=isa,
        stack=table.text("stack", shared.stack),
        compute=table.one_of("compute", list(Compute), shared.compute),
        notebook=table.text("notebook", shared.notebook),
        prompts=table.text("prompts", shared.prompts),
        required=table.boolean("required", shared.required),
        expect=table.one_of("expect", (PARITY, DIVERGED), PARITY),
        reason=table.text("reason", ""),
        at=table.one_of("at", ["", *(rung.value for rung in Rung)], ""),
        fault=fault,
        control=table.boolean("control", False),
        limit_s=table.integer("limit_s", shared.limit_s, least=1),
        require_isa=table.boolean("require_isa", isa != HOST),
        where_possible=table.boolean("where_possible", False),
    )
    table.done()
    if cell.where_possible and isa == HOST:
        raise FixtureError(
            "the host's ISA target is possible everywhere", place=table.place, expected="an ISA target by name"
        )
    if len({cell.expect == DIVERGED, bool(cell.reason), bool(cell.at)}) > 1:
        raise FixtureError(
            "an expected divergence, its reason and its rung go together",
            place=table.place,
            expected='all of expect = "diverged", reason = .. and at = "T3", or none of these keys',
            found=f"expect {cell.expect}, reason {cell.reason!r}, at {cell.at!r}",
        )
    if cell.control and (not cell.fault or cell.expect == DIVERGED):
        raise FixtureError(
            "a red control has no 'expect': it seeds a fault, which is caught or not",
            place=table.place,
            expected="fault = .., no expect",
            found=f"fault {cell.fault!r}, expect {cell.expect}",
        )
    if not (notebooks / f"{cell.notebook}.ipynb").is_file():
        raise FixtureError(
            "names a notebook that is not there",
            place=table.place,
            expected=f"one of {', '.join(sorted(p.stem for p in notebooks.glob('*.ipynb')))}",
            found=cell.notebook,
        )
    return cell


def _check_unique(cells: Sequence[PlanCell], path: Path) -> None:
    names = [(cell.name, cell.notebook, cell.prompts) for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise FixtureError("a cell is in the plan twice", place=path, expected="once", found=name[0])
