"""What is pinned besides files: llama.cpp's self-spread by machine class, and the tokenizers' known differences."""

from __future__ import annotations

from collections.abc import Sequence

from parity_lib.judge.t1_known_differences import KnownDifferences
from parity_lib.pages.kit.fragment import Fragment, details, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, number, percent, short
from parity_lib.records.self_spread_pins import SpreadPin, SpreadTable


def spread_pin_table(spreads: SpreadTable, machine_class: str) -> Fragment:
    """Return each pinned self-spread with its limits, those of this machine class first.

    Args:
        spreads: of ``fixtures/spread.toml``.
        machine_class: of this machine; a pin of another one lends its limits only, and the verdict is provisional.
    """
    pins = sorted(spreads.pins, key=lambda pin: (pin.machine_class != machine_class, pin.key))
    if not pins:
        return paragraph(
            "No self-spread is pinned: rung T5 derives its limits on the fly. Next: parity spread MODEL QUANT --write"
        )
    own = sum(pin.machine_class == machine_class for pin in pins)
    text = (
        f"{count(own)} of {count(len(pins))} are of this machine class, {machine_class}; the others give limits only."
    )
    columns = (
        Column("file"),
        Column("target"),
        Column("machine class"),
        Column("rms over std", numeric=True),
        Column("p99 of |delta|, logits", numeric=True),
        Column("KL, mean, nats", numeric=True),
        Column("top-1 equal", numeric=True),
        Column("top-5 set equal", numeric=True),
        Column("limits of the ratios: rms, p99, KL"),
        Column("displaced flips", numeric=True),
    )
    rows = [_spread(pin, machine_class) for pin in pins]
    sources = table(
        (Column("file"), Column("source")), [[row[0], short(pin.source)] for row, pin in zip(rows, pins, strict=True)]
    )
    return paragraph(text) + table(columns, rows, css="native") + details("sources", sources)


def _spread(pin: SpreadPin, machine_class: str) -> list[str]:
    return [
        f"{pin.model} {pin.quant}",
        pin.isa,
        "this one" if pin.machine_class == machine_class else pin.machine_class,
        *(number(value, 3) for value in (pin.rms, pin.p99, pin.kl)),
        percent(pin.top1_share),
        percent(pin.top5_set_share),
        ", ".join(number(limit, 3) for limit in (pin.rms_limit, pin.p99_limit, pin.kl_limit)),
        count(len(pin.displaced)),
    ]


def difference_table(known: KnownDifferences) -> Fragment:
    """Return the differences between tokenizers that rung T1 lists, each with its reason."""
    if not known.entries:
        return paragraph("No difference is listed: every text has to give the same ids.")
    columns = (Column("difference"), Column("pre-tokenizers"), Column("classes of texts"), Column("reason"))
    rows = [[e.name, _list(e.pre), _list(e.groups), e.reason] for e in known.entries]
    return table(columns, rows, css="tokens")


def _list(words: Sequence[str]) -> str:
    return ", ".join(words) or NONE
