"""Bands as data: limit, unit and source. A band without a source is refused; `parity bands` writes them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from parity_lib.base.errors import FixtureError, PinError
from parity_lib.base.names import Rung
from parity_lib.base.toml_table import Table, fixture_path, read_toml
from parity_lib.records.traces import Position

SCHEMA = "parity/tolerances/2"

JOINT = "; "  # in a source: what was measured for this limit, then what all limits of the cell were measured on

FIRST = "first"  # row 0 of a prompt: its logits carry larger rounding errors
LATER = "later"  # every other row
ALL = "all"
_PLACE = re.compile(r"prompt (\d+) token (-?\d+)")  # one sensitive position with a limit of its own

METRICS = {
    "pooled_rms_over_std": "rms/std",
    "position_rms_over_std": "rms/std",
    "delta_over_std": "delta/std",
    "pair_sigma_over_std": "sigma/std",
}
"""Metric of a band -> its unit. All are relative to the standard deviation of the reference's logit row.

``pooled_rms_over_std``: sqrt(sum of rms^2 / sum of std^2) over the rows; ``position_rms_over_std``: rms / std of
one row; ``delta_over_std``: |candidate - reference| at delta_id / std; ``pair_sigma_over_std``: standard deviation
of the error of the *difference* of two top logits / std (the flip ledger's sigma).
"""


@dataclass(frozen=True, slots=True)
class Band:
    """One limit, where it applies, and where it comes from."""

    model: str
    quant: str
    rung: Rung
    metric: str  # a key of METRICS
    where: str  # FIRST, LATER, ALL, or "prompt 3 token -50"
    limit: float
    unit: str
    source: str  # what was measured, with which factor: enough to derive the number again
    provisional: bool  # measured, but not yet predicted by the kernel baseline

    def __post_init__(self) -> None:
        place = f"band {self.model} {self.quant} {self.rung} {self.metric} {self.where}"
        if not self.source.strip():
            raise FixtureError("has no source", place=place, next_step="derive it: parity bands MODEL QUANT --write")
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise FixtureError("has no usable limit", place=place, expected="a finite number above 0", found=self.limit)
        if METRICS.get(self.metric) != self.unit:
            raise FixtureError(
                "has an unknown metric or unit", place=place, expected=METRICS, found=f"{self.metric} in {self.unit}"
            )
        if self.where not in (FIRST, LATER, ALL) and self.position is None:
            expected = 'first, later, all, or "prompt P token T"'
            raise FixtureError("has an unknown place", place=place, expected=expected, found=self.where)

    @property
    def position(self) -> Position | None:
        """Return the single position that this band applies to, or None for a band of many."""
        match = _PLACE.fullmatch(self.where)
        return Position(int(match[1]), int(match[2])) if match else None

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """Return what may exist only once in a table."""
        return (self.model, self.quant, self.rung.value, self.metric, self.where)


class ToleranceTable:
    """All bands of one file, or those derived for a file of the user's own.

    Args:
        bands: each key at most once.
        sha256: of the file; empty where the bands were derived on the fly.

    Raises:
        FixtureError: two bands for one key.
    """

    def __init__(self, bands: Iterable[Band], sha256: str = "") -> None:
        self.sha256 = sha256
        self._bands: dict[tuple[str, str, str, str, str], Band] = {}
        for band in bands:
            if band.key in self._bands:
                raise FixtureError("two bands for one key", place=" ".join(band.key), expected="exactly one")
            self._bands[band.key] = band

    @property
    def bands(self) -> tuple[Band, ...]:
        """Return all bands, sorted by key."""
        return tuple(self._bands[key] for key in sorted(self._bands))

    def band(self, model: str, quant: str, rung: Rung, metric: str, where: str = ALL) -> Band:
        """Return the one band for a key; ``where="all"`` stands in for first and later where it is pinned so.

        Raises:
            PinError: there is none. The cell is then INCOMPLETE: a missing limit must not pass.
        """
        for place in (where, ALL):
            band = self._bands.get((model, quant, rung.value, metric, place))
            if band is not None:
                return band
        raise PinError(
            f"no band for {rung} {metric} ({where})",
            place=f"{model} {quant}",
            expected="exactly one in fixtures/tolerances.toml",
            next_step=f"parity bands {model} {quant} --write",
        )

    def cell(self, model: str, quant: str, rung: Rung) -> BandSet:
        """Return the bands of one model and file quant for one rung."""
        return BandSet(self, model, quant, rung)


@dataclass(frozen=True, slots=True)
class BandSet:
    """The bands that one judge needs: model, quant and rung are fixed."""

    table: ToleranceTable
    model: str
    quant: str
    rung: Rung

    def band(self, metric: str, where: str = ALL) -> Band:
        """Return one band. Raises ``PinError`` if there is none."""
        return self.table.band(self.model, self.quant, self.rung, metric, where)

    @property
    def sensitive(self) -> frozenset[Position]:
        """Return the positions that have limits of their own: the others are judged and pooled without them."""
        return frozenset(band.position for band in self._own() if band.position is not None)

    def at(self, metric: str, positions: Sequence[Position], first: Sequence[bool]) -> list[float]:
        """Return the limit at each position.

        Args:
            metric: a key of ``METRICS``.
            positions: where.
            first: whether each of them is row 0 of its prompt.

        Raises:
            PinError: there is no band for one of them.
        """
        own = {band.position: band.limit for band in self._own() if band.metric == metric and band.position}
        usual = {True: self.band(metric, FIRST).limit, False: self.band(metric, LATER).limit}
        return [own.get(position, usual[bool(row)]) for position, row in zip(positions, first, strict=True)]

    @property
    def provisional(self) -> bool:
        """Return whether any of these bands is provisional."""
        return any(band.provisional for band in self._own())

    @property
    def source(self) -> str:
        """Return the different sources of these bands, joined."""
        return "; ".join(sorted({band.source for band in self._own()}))

    def _own(self) -> list[Band]:
        mine = (self.model, self.quant, self.rung.value)
        return [band for band in self.table.bands if band.key[:3] == mine]


def load_tolerances(path: Path | str | None = None) -> ToleranceTable:
    """Return the bands of ``fixtures/tolerances.toml``; an empty table is valid, and then every cell is INCOMPLETE.

    Raises:
        FixtureError: unreadable, another version, unknown key, no source, bad limit or metric, two bands for one key.

    >>> band = load_tolerances().band("smollm2-135m", "Q8_0", Rung.T4, "delta_over_std", FIRST)
    >>> band.limit > 0, "float64" in band.source
    (True, True)
    """
    path = fixture_path("tolerances.toml") if path is None else Path(path)
    table, sha256 = read_toml(path)
    table.schema(SCHEMA)
    bands = [band for cell in table.tables("cell", []) for band in _bands(cell)]
    table.done()
    return ToleranceTable(bands, sha256)


def _bands(cell: Table) -> list[Band]:
    """Return the bands of a group: model, quant, rung, the part of the source and the mark that they share."""
    shared = (cell.text("model"), cell.text("quant"), Rung(cell.one_of("rung", [rung.value for rung in Rung])))
    source, provisional = cell.text("source"), cell.boolean("provisional", False)
    bands = [_band(row, shared, source, provisional) for row in cell.tables("bands")]
    cell.done()
    return bands


def _band(row: Table, shared: tuple[str, str, Rung], source: str, provisional: bool) -> Band:
    metric, measured = row.one_of("metric", METRICS), row.text("measured", "")
    where, limit = row.text("where", ALL), row.number("limit")
    row.done()
    source = f"{measured}{JOINT}{source}" if measured else source
    return Band(*shared, metric, where, limit, METRICS[metric], source, provisional)


def dump_tolerances(bands: Iterable[Band]) -> str:
    """Return the text of a tolerances file that ``load_tolerances`` reads back to the same bands, sorted by key.

    The bands of a cell stand together, below the part of their source that they share.
    """
    lines = ["# Generated by `parity bands`; each limit names its source. Do not edit by hand.", ""]
    lines += [f'schema = "{SCHEMA}"']
    groups: dict[tuple[str | bool, ...], list[str]] = {}
    for band in ToleranceTable(bands).bands:
        measured, source = _split(band.source)
        words = [f"{name} = {_toml(getattr(band, name))}" for name in ("metric", "where", "limit")]
        words += [f"measured = {_toml(measured)}"] if measured else []
        shared = (band.model, band.quant, band.rung.value, source, band.provisional)
        groups.setdefault(shared, []).append(f"    {{ {', '.join(words)} }},")
    for key, rows in groups.items():
        names = ("model", "quant", "rung", "source", "provisional")
        lines += ["", "[[cell]]", *(f"{name} = {_toml(value)}" for name, value in zip(names, key, strict=True))]
        lines += ["bands = [", *rows, "]"]
    return "\n".join(lines) + "\n"


def _split(source: str) -> tuple[str, str]:
    """Split a source into the part about this limit, and the part that all limits of the cell share."""
    measured, _, shared = source.partition(JOINT)
    return (measured, shared) if measured.strip() and shared.strip() else ("", source)


def _toml(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML refuses.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(float(value))
