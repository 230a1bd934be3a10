"""Red controls of rung T3: faults of one op each, the op that has to be named, and the op that was named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from parity_lib.base.errors import FixtureError
from parity_lib.base.record import Count, NotEmpty, Positive, Record, Seconds, Utc
from parity_lib.base.toml_table import Table, fixture_path, read_toml
from parity_lib.numerics.op_error import OpError
from parity_lib.records.verdicts import CellId

LIST_SCHEMA = "parity/op_faults/1"
EDITS = ("zero_row", "swap_rows", "scale", "sub_scale", "minimum", "code", "number")
NOTHING, BIAS, OUTPUT_BIAS, WIDE = "nothing", "bias", "output bias", "more than bf16"
EXACT_SHARE = 0.95  # of the faults: share that must be named to the op; all of them must be named to the layer


@dataclass(frozen=True, slots=True)
class OpFault:
    """One fault of one op; ``{block}`` in its names stands for the block at ``depth``."""

    name: str
    what: str
    site: str  # that has to be named
    depth: float  # 0 the first block, below 1
    needs: str
    tensor: str  # of the candidate's file; empty: a switch of the candidate
    edit: str
    row: str  # fed, unfed, or empty: two fifths down

    def at(self, block: int) -> tuple[str, str, str]:
        """Return name, site and tensor in one block."""
        name, site, tensor = (text.replace("{block}", str(block)) for text in (self.name, self.site, self.tensor))
        return name, site, tensor

    def block(self, n_layer: int) -> int:
        """Return the block that is meant in a model of so many."""
        return min(n_layer - 1, int(self.depth * n_layer))


class Trial(Record, frozen=True):
    """The result of one fault of one op."""

    fault: NotEmpty
    what: NotEmpty
    at: NotEmpty  # "engine" or the tensor
    expected: NotEmpty  # site
    named: str  # the first op over its limit; empty: none
    op: str  # ggml's name of what was named
    nmse: float  # local error of the named op, over the tensor
    position_nmse: float
    channel_nmse: float
    position: Count  # the worst one
    channel: Count
    n_over: Count  # ops over their limits
    seconds: Seconds

    @property
    def is_layer(self) -> bool:
        """Return whether the right layer was named; an op outside of all layers counts as one of its own."""
        return bool(self.named) and _layer(self.named) == _layer(self.expected)

    @property
    def is_op(self) -> bool:
        """Return whether the right op was named."""
        return self.named == self.expected


class TrialTable(Record, frozen=True, tag_field="schema", tag="parity/place_trials/1"):
    """All faults of one op of one cell; without a fault every op was inside its limits."""

    cell: CellId
    n_positions: Positive
    n_ops: Positive  # that each replay compares
    sound_share: float  # of its limit that the worst op without a fault uses up
    trials: Annotated[tuple[Trial, ...], Meta(min_length=1)]
    not_seeded: Mapping[str, NotEmpty]  # fault -> why
    machine_class: NotEmpty
    created_at: Utc
    seconds: Seconds

    @property
    def layers_named(self) -> int:
        """Return for how many faults the replay named the right layer."""
        return sum(trial.is_layer for trial in self.trials)

    @property
    def ops_named(self) -> int:
        """Return for how many faults the replay named the right op."""
        return sum(trial.is_op for trial in self.trials)

    @property
    def is_good(self) -> bool:
        """Return whether all were named to the layer and ``EXACT_SHARE`` of them to the op; false without any."""
        n = len(self.trials)
        return n > 0 and self.layers_named == n and self.ops_named >= EXACT_SHARE * n


def judge_trial(fault: str, what: str, at: str, expected: str, errors: Sequence[OpError], seconds: float) -> Trial:
    """Return what the replay of a fault names: the first op over its limit, in the order in which they ran."""
    over = [error for error in errors if not error.share <= 1]
    first = over[0] if over else None
    return Trial(
        fault=fault,
        what=what,
        at=at,
        expected=expected,
        named="" if first is None else first.site,
        op="" if first is None else first.op,
        nmse=0.0 if first is None else first.nmse,
        position_nmse=0.0 if first is None else first.position_nmse,
        channel_nmse=0.0 if first is None else first.channel_nmse,
        position=0 if first is None else first.position,
        channel=0 if first is None else first.channel,
        n_over=len(over),
        seconds=seconds,
    )


def load_op_faults(path: Path | None = None) -> tuple[OpFault, ...]:
    """Return every fault of ``fixtures/op_faults.toml``, or of another list.

    Raises:
        FixtureError: the list cannot be read, is empty, or a fault contradicts itself.
    """
    path = fixture_path("op_faults.toml") if path is None else path
    table, _ = read_toml(path)
    table.schema(LIST_SCHEMA)
    listed = tuple(_read(entry) for entry in table.tables("fault"))
    table.done()
    if not listed:
        raise FixtureError("the list has no faults", place=path, expected="at least one [[fault]]")
    return listed


def _read(table: Table) -> OpFault:
    tensor = table.text("tensor", "")
    seeded = OpFault(
        name=table.text("name"),
        what=table.text("what"),
        site=table.text("site"),
        depth=table.number("depth", 0.0),
        needs=table.one_of("needs", (NOTHING, BIAS, OUTPUT_BIAS, WIDE), NOTHING),
        tensor=tensor,
        edit=table.one_of("edit", EDITS) if tensor else "",
        row=table.one_of("row", ("fed", "unfed", "middle"), "middle"),
    )
    table.done()
    if not 0 <= seeded.depth < 1:
        raise FixtureError("'depth' is outside", place=table.place, expected="0 to below 1", found=seeded.depth)
    return seeded


def _layer(site: str) -> str:
    name, dash, block = site.rpartition("-")
    return block if dash and block.isdecimal() else name or block


def share_of(errors: Sequence[OpError]) -> float:
    """Return which share of its limit the worst op uses; infinite without an op."""
    return max((error.share for error in errors), default=math.inf)
