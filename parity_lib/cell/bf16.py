"""The candidate's ``bf16`` policy end to end: reported against the BF16 band, not gated.

Both engines round both operands of each weight product to BF16 and differ in the order of their sums. A row of that is
chaotic: one rounding that falls the other way moves the next layer's operands by a BF16 step. So a plain f32 engine is
as near to llama.cpp on the BF16 file as a correct bf16 engine is, and no end-to-end number can tell the two apart.
The three distances stand side by side to show it; what judges the policy is each op on its own inputs (T3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from parity_lib.base.names import Compute, Outcome, Rung
from parity_lib.cell import rows as logits
from parity_lib.cell.open_engines import open_burn
from parity_lib.cell.reference import Reference, score
from parity_lib.cell.rows import Rows
from parity_lib.judge.align import Aligned, align
from parity_lib.judge.literal import literal_report
from parity_lib.records.row_numbers import Bf16
from parity_lib.records.traces import PairTrace, Position
from parity_lib.records.verdicts import RungResult

if TYPE_CHECKING:
    from parity_lib.cell.request import Cell

BAND, CANDIDATE, PLAIN = "band", "candidate", "plain_f32"


def capture_plain(cell: Cell, reference: Reference) -> Rows:
    """Score the cell's tokens with burn in f32, for comparison with burn in ``bf16``."""
    with open_burn(cell, compute=str(Compute.F32), fault=None) as engine:
        return score(cell, engine, reference, "plain-f32", "burn scores in f32")


def report_bf16(
    bf16_twin: Rows, f32_twin: Rows, candidate: Rows, plain: Rows, expected: Sequence[Position]
) -> tuple[RungResult, Bf16, PairTrace]:
    """Report rung T4 of a cell with ``compute="bf16"``: three distances to llama.cpp on the BF16 twin.

    Args:
        bf16_twin: llama.cpp's rows on the BF16 twin, what the three are measured from.
        f32_twin: llama.cpp's rows on the F32 twin; their distance is the BF16 band.
        candidate: burn's rows with the policy bf16.
        plain: burn's rows in f32.
        expected: every position of the cell.

    Returns:
        The rung, REPORTED, or INCOMPLETE where a position is missing or not finite; what was
        measured; and the pair (BF16 twin, candidate), to be stored as the cell's ``twin`` pair.
    """
    pair = logits.pair(bf16_twin, candidate, expected)
    seen = {
        BAND: align(logits.pair(bf16_twin, f32_twin, expected), expected),
        CANDIDATE: align(pair, expected),
        PLAIN: align(logits.pair(bf16_twin, plain, expected), expected),
    }
    told = Bf16(**{name: literal_report(aligned) for name, aligned in seen.items()})
    own = seen[CANDIDATE]
    causes = [f"{name}: {cause}" for name, cause in _causes(seen)]
    rms, band = (math.nan if r.all is None else r.all.rms_over_row_std for r in (told.candidate, told.band))
    rung = RungResult(
        rung=Rung.T4,
        outcome=Outcome.INCOMPLETE if causes else Outcome.REPORTED,
        expected=own.n_expected,
        compared=len(own),
        worst=rms if math.isfinite(rms) else None,
        limit=None,
        unit="rms/std",
        worst_where="pooled, against llama.cpp on the BF16 twin",
        source="literal, no gate: no end-to-end number separates bf16 from f32; T3 judges the policy",
        note="; ".join(causes) or f"the BF16 band is {band:.3g}",
    )
    return rung, told, pair


def _causes(seen: dict[str, Aligned]) -> list[tuple[str, str]]:
    found = [(name, cause) for name, aligned in seen.items() for cause in aligned.causes]
    sick = [(name, int((~aligned.finite).sum())) for name, aligned in seen.items()]
    return found + [(name, f"{n} positions are not finite") for name, n in sick if n]
