"""Rung T6: does one engine compute the same row on each of its paths? Rows are compared by digest, bit by bit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.records.measured import Relation
from parity_lib.records.traces import Position
from parity_lib.records.verdicts import Divergence, RungResult

RELATIONS: Mapping[str, str] = {
    "decode": "fed one token at a time through the key and value cache, after a prefill in pieces",
    "restored": "decoded by a new session that took over a saved state",
    "alone": "as the only sequence of a pass",
    "permuted": "in a pass whose rows mix the sequences, last sequence first",
    "threads": "with another number of threads",
}
"""How a row is made a second time, each to be bit-equal to the row of the teacher-forced pass over all prompts."""

AMONG_OTHERS = ("alone", "permuted")  # relations that need at least two prompts
_SHOWN = 3  # relations or rows named in a cause; the counts are always complete

Expected = Mapping[str, Sequence[Position]]  # by relation: the rows that have to be made again
Found = Mapping[str, Mapping[Position, bytes]]  # by relation: the digest of each row that was


def judge_self(
    rows: Mapping[Position, bytes], expected: Expected, found: Found, non_finite: Collection[Position] = ()
) -> tuple[RungResult, list[Divergence], dict[str, Relation]]:
    """Judge rung T6: every expected row of every relation has the digest of the teacher-forced pass's row.

    Args:
        rows: digests of the teacher-forced pass.
        expected: what has to be compared, from the prompts and never from what came back.
        found: what the relations gave.
        non_finite: rows of the teacher-forced pass with a value that is not finite: made again, they show nothing.

    Returns:
        The rung, in rows; one divergence for each relation and prompt with a row that differs, at the first such
        row; and the counts by relation. A row that is missing on a side, was not expected, or belongs to a relation
        that is unknown makes the rung INCOMPLETE, and so does a relation that was left out, unless a row differs:
        that is a fact. A single prompt has no others, so AMONG_OTHERS may be left out.
    """
    causes = [f"no such relation: {name}" for name in {**expected, **found} if name not in RELATIONS]
    causes += [f"{name} was not expected" for name in found if name in RELATIONS and name not in expected]
    single = len({p.prompt_idx for positions in expected.values() for p in positions}) == 1
    needed = [name for name in RELATIONS if not (single and name in AMONG_OTHERS)]
    causes += [f"{name} is missing from what was expected" for name in needed if name not in expected]
    counts: dict[str, Relation] = {}
    divergences: list[Divergence] = []
    for name, positions in expected.items():
        given = found.get(name, {})
        both = [p for p in dict.fromkeys(positions) if p in rows and p in given]
        differ = [p for p in both if rows[p] != given[p]]
        empty = [p for p in both if p in non_finite and rows[p] == given[p]]
        causes += _missing(name, positions, rows, given)
        causes += [f"{name}: {len(empty)} rows are not finite: {_names(empty)}"] if empty else []
        divergences += _divergences(name, both, differ)
        counts[name] = Relation(
            what=RELATIONS.get(name, ""),
            expected=len(set(positions)),
            compared=len(both) - len(empty),
            equal=len(both) - len(empty) - len(differ),
            prompts=tuple(sorted({p.prompt_idx for p in positions})),
        )
    totals = [(count.expected, count.compared, count.equal) for count in counts.values()]
    n_expected, n_compared, n_equal = map(sum, zip((0, 0, 0), *totals, strict=True))
    first = divergences[0] if divergences else None
    rung = RungResult(
        rung=Rung.T6,
        outcome=Outcome.DIVERGED if divergences else Outcome.INCOMPLETE if causes else Outcome.PARITY,
        expected=n_expected,
        compared=n_compared,
        worst=float(n_compared - n_equal),
        limit=0.0,
        unit="rows",
        worst_where="" if first is None else f"{first.where}: prompt {first.prompt_idx} token {first.token_idx}",
        source="bit-equal to the teacher-forced pass over all prompts",
        note="; ".join([*causes, ", ".join(f"{name} {count.equal}" for name, count in counts.items())]),
    )
    return rung, divergences, counts


def _missing(
    name: str, positions: Sequence[Position], rows: Mapping[Position, bytes], given: Mapping[Position, bytes]
) -> list[str]:
    """Return what keeps a relation from being complete, one sentence each."""
    wanted = dict.fromkeys(positions)
    missing = {
        "not made again": [p for p in wanted if p not in given],
        "not in the teacher-forced pass": [p for p in wanted if p not in rows],
        "not expected": [p for p in given if p not in wanted],
    }
    causes = [f"{name}: {len(found)} rows {word}: {_names(found)}" for word, found in missing.items() if found]
    return causes if wanted else [*causes, f"{name}: no row is expected, so none would be compared"]


def _divergences(name: str, both: Sequence[Position], differ: Sequence[Position]) -> list[Divergence]:
    """Return one divergence for each prompt with a row that differs, at the first such row."""
    divergences = []
    for prompt_idx in sorted({p.prompt_idx for p in differ}):
        wrong = [p.token_idx for p in differ if p.prompt_idx == prompt_idx]
        n_rows = sum(p.prompt_idx == prompt_idx for p in both)
        note = f"{len(wrong)} of {n_rows} rows are not bit-equal to the teacher-forced pass; {RELATIONS.get(name, '')}"
        divergences.append(
            Divergence(Rung.T6, Kind.BITS, 0.0, prompt_idx, min(wrong), where=name, note=note.rstrip("; "))
        )
    return divergences


def _names(positions: Sequence[Position]) -> str:
    shown = ", ".join(f"prompt {p.prompt_idx} token {p.token_idx}" for p in positions[:_SHOWN])
    return shown + (f" and {len(positions) - _SHOWN} more" if len(positions) > _SHOWN else "")
