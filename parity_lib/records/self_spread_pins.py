"""Pinned self-spreads as data: what llama.cpp was from itself, and the limits that follow, each with its source."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from parity_lib.base.errors import FixtureError
from parity_lib.base.names import Isa, Kind
from parity_lib.base.toml_table import Table, fixture_path, read_toml, toml_value
from parity_lib.records.self_spread import VARIANTS, Displaced

SCHEMA = "parity/spreads/1"
NEXT_STEP = "measure it: parity spread MODEL QUANT --write"
PINNED = ("rms", "p99", "kl", "pair_sigma")
"""Numbers of the pooled self-spread that the current one has to agree with: rms over the deviation within rows; p99 of
|delta| and the root mean square of pair sigma, logits; mean KL, nats."""
LIMITS = ("rms", "p99", "kl")


@dataclass(frozen=True, slots=True)
class SpreadPin:
    """The self-spread of one file on one machine class, and the limits of the three ratios."""

    model: str
    quant: str
    isa: str
    machine_class: str
    prompts_sha256: str
    model_sha256: str
    variants: tuple[str, ...]  # that the numbers are pooled over
    rms: float
    rms_over_std_of_all: float
    p99: float
    kl: float
    pair_sigma: float
    top1_share: float
    top5_set_share: float
    rms_ratio: float  # of the reference's twin: what a correct candidate shows
    rms_limit: float
    p99_ratio: float
    p99_limit: float
    kl_ratio: float
    kl_limit: float
    displaced: tuple[Displaced, ...]
    source: str

    def __post_init__(self) -> None:
        place = f"spread {self.model} {self.quant} {self.isa} {self.machine_class}"
        if not self.source.strip():
            raise FixtureError("has no source", place=place, next_step=NEXT_STEP)
        if not self.variants or not set(self.variants) <= set(VARIANTS):
            raise FixtureError("has no variant, or an unknown one", place=place, expected=VARIANTS, found=self.variants)
        for name in _numbers():
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise FixtureError(f"'{name}' is not usable", place=place, expected="a number above 0", found=value)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """Return what may exist only once in a table."""
        return (self.model, self.quant, self.isa, self.machine_class, self.prompts_sha256)

    def limit(self, metric: str) -> float:
        """Return the limit of one ratio of LIMITS."""
        return float(getattr(self, f"{metric}_limit"))

    def ratio(self, metric: str) -> float:
        """Return the ratio that the reference's own twin had when this was pinned."""
        return float(getattr(self, f"{metric}_ratio"))


def _numbers() -> list[str]:
    return [f.name for f in fields(SpreadPin) if f.type == "float"]


class SpreadTable:
    """All pinned self-spreads of one file.

    Args:
        pins: each key at most once.
        sha256: of the file.

    Raises:
        FixtureError: two pins for one key.
    """

    def __init__(self, pins: Iterable[SpreadPin], sha256: str = "") -> None:
        self.sha256 = sha256
        self._pins: dict[tuple[str, str, str, str, str], SpreadPin] = {}
        for pin in pins:
            if pin.key in self._pins:
                raise FixtureError("two self-spreads for one key", place=" ".join(pin.key), expected="exactly one")
            self._pins[pin.key] = pin

    @property
    def pins(self) -> tuple[SpreadPin, ...]:
        """Return all pins, sorted by key."""
        return tuple(self._pins[key] for key in sorted(self._pins))

    def find(self, model: str, quant: str, isa: str, machine_class: str, prompts_sha256: str) -> SpreadPin | None:
        """Return the pin of this machine class; else one of another class of the same ISA target; else None.

        The judge tells the two apart by ``machine_class``: from another class only the limits of the ratios are
        taken, and the verdict is provisional.
        """
        own = self._pins.get((model, quant, isa, machine_class, prompts_sha256))
        if own is not None:
            return own
        same_target = [p for p in self.pins if p.key[:3] == (model, quant, isa) and p.prompts_sha256 == prompts_sha256]
        return same_target[0] if same_target else None


def load_spreads(path: Path | str | None = None) -> SpreadTable:
    """Return the pins of ``fixtures/spread.toml``.

    Raises:
        FixtureError: unreadable, another version, unknown key, no source, a number that is not above 0, two for a key.
    """
    path = fixture_path("spread.toml") if path is None else Path(path)
    table, sha256 = read_toml(path)
    table.schema(SCHEMA)
    pins = [_pin(entry) for entry in table.tables("spread", [])]
    table.done()
    return SpreadTable(pins, sha256)


def _pin(table: Table) -> SpreadPin:
    pin = SpreadPin(
        model=table.text("model"),
        quant=table.text("quant"),
        isa=table.one_of("isa", [str(isa) for isa in Isa]),
        machine_class=table.text("machine_class"),
        prompts_sha256=table.hex("prompts_sha256", 64),
        model_sha256=table.hex("model_sha256", 64),
        variants=table.texts("variants"),
        displaced=tuple(_displaced(word, table.place) for word in table.texts("displaced", [])),
        source=table.text("source"),
        **{name: table.number(name) for name in _numbers()},
    )
    table.done()
    return pin


def _displaced(word: str, place: str) -> Displaced:
    """Return the flip that ``PROMPT/TOKEN/KIND`` names."""
    try:
        prompt_idx, token_idx, kind = word.split("/")
        return Displaced(int(prompt_idx), int(token_idx), Kind(kind))
    except ValueError as error:
        raise FixtureError("is no flip", place=f"{place} displaced", expected="10/-2007/TOP1", found=word) from error


def dump_spreads(pins: Iterable[SpreadPin]) -> str:
    """Return the text of a file that ``load_spreads`` reads back to the same pins, sorted by key."""
    lines = ["# Generated by `parity spread`; each entry names its source. Do not edit by hand.", ""]
    lines += [f'schema = "{SCHEMA}"']
    for pin in SpreadTable(pins).pins:
        lines += ["", "[[spread]]"]
        for f in fields(SpreadPin):
            value = getattr(pin, f.name)
            if f.name == "displaced":
                value = tuple("/".join(map(str, item)) for item in value)
            words = "[" + ", ".join(map(toml_value, value)) + "]" if isinstance(value, tuple) else toml_value(value)
            lines.append(f"{f.name} = {words}")
    return "\n".join(lines) + "\n"
