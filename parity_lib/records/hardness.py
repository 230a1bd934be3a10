"""How hard a model is for an engine: how far its scores and residuals reach, how long its biases are. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from parity_lib.base.record import Count, Record
from parity_lib.base.toml_table import Table, fixture_path, read_toml

SCHEMA = "parity/hardness/1"


class Extreme(Record, frozen=True):
    """The farthest value of its kind, and where the reference has it."""

    value: float
    site: str
    prompt_idx: Count
    token_idx: int
    head: Count | None = None  # query head, of a score


class BiasNorms(Record, frozen=True):
    """The biases of one product over all blocks, by their Euclidean norms."""

    largest: float
    tensor: str  # that has it
    median: float


class Hardness(Record, frozen=True):
    """What an engine has to cope with in one cell, as the reference computed it."""

    rows: Count  # that were read
    score: Extreme  # attention score of the largest magnitude, scaled, before the softmax
    depth: Extreme  # the score deepest below its row's largest: that difference, at most 0
    residual: Extreme  # value of the residual stream of the largest magnitude
    biases: Mapping[str, BiasNorms]  # ``attn_k.bias`` -> norms; empty where the file has none


@dataclass(frozen=True, slots=True)
class Known:
    """What a model showed once, to compare another with."""

    model: str
    quant: str
    score: float
    depth: float
    residual: float
    source: str


def load_known(path: Path | None = None) -> Mapping[str, Known]:
    """Return the models of ``fixtures/hardness.toml`` by id.

    Raises:
        FixtureError: the file cannot be read, or an unknown or missing key.
    """
    table, _ = read_toml(fixture_path("hardness.toml") if path is None else path)
    table.schema(SCHEMA)
    known = [_known(item) for item in table.tables("model")]
    table.done()
    return MappingProxyType({one.model: one for one in known})


def _known(item: Table) -> Known:
    one = Known(
        model=item.text("id"),
        quant=item.text("quant"),
        score=item.number("score"),
        depth=item.number("depth"),
        residual=item.number("residual"),
        source=item.text("source"),
    )
    item.done()
    return one
