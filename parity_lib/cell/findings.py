"""What the steps of a cell find, and what is concluded from that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parity_lib.base.names import Rung
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.self_spread import SelfSpread
from parity_lib.records.traces import PairTrace
from parity_lib.records.verdicts import Verdict

# Of a file with a vocabulary, in f32.
REQUIRED = (Rung.T0, Rung.T1, Rung.T2, Rung.T3, Rung.T4, Rung.T5, Rung.T6, Rung.T7)


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """The verdict, with the traces and limits that it was judged by; None for what could not be computed."""

    verdict: Verdict
    twin: PairTrace | None = None
    native: PairTrace | None = None
    limits: DriftLimits | None = None  # that T4 was judged by
    spread: SelfSpread | None = None  # that T5 was judged by
    token_text: Mapping[int, bytes] = field(default_factory=dict)  # of the ids in the traces' top-5s and fed tokens
