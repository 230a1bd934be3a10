"""Chooses the token to trace, the rows of its prompt to observe, and the passes that feed them."""

from __future__ import annotations

from dataclasses import dataclass

from parity_lib.base.errors import UsageError
from parity_lib.cell.reference import Reference
from parity_lib.cell.request import Cell
from parity_lib.engines.llamacpp.settings import N_UBATCH
from parity_lib.model_file.facts import ModelFacts
from parity_lib.records.traces import Position

MOST_ROWS, FEWEST_ROWS = 256, 64  # whose every site is captured
BYTES = 1 << 30  # of one capture, about


@dataclass(frozen=True, slots=True)
class Place:
    """One token of one prompt, and the sequence that leads to it."""

    prompt_idx: int
    prompt: str  # its name
    token_idx: int  # 0 chooses the first generated token
    n_prompt: int  # tokens of the prompt
    sequence: tuple[int, ...]  # what is fed; all of it where it is short, else up to the token
    first: int  # first position whose every site is captured

    @property
    def row(self) -> int:
        """Return the token's position in the sequence, from 0."""
        return self.token_idx + self.n_prompt - 1

    @property
    def positions(self) -> tuple[Position, ...]:
        """Return what is scored: each row of the sequence."""
        return tuple(Position(self.prompt_idx, row - (self.n_prompt - 1)) for row in range(len(self.sequence)))

    @property
    def fills(self) -> tuple[int, ...]:
        """Return the rows of the passes that only fill the cache."""
        return (N_UBATCH,) * (self.first // N_UBATCH) + (self.first % N_UBATCH,) * (self.first % N_UBATCH > 0)

    @property
    def passes(self) -> tuple[int, ...]:
        """Return the rows of each pass: the token itself as a decode, what is before and after it as prefills."""
        before, after = self.row - self.first, len(self.sequence) - self.row - 1
        return (*self.fills, *(n for n in (before, 1, after) if n))


def find_place(cell: Cell, reference: Reference, prompt: str | int, token_idx: int) -> Place:
    """Return the place of a token.

    Args:
        cell: its prompts and facts.
        reference: what was generated.
        prompt: number or name.
        token_idx: 0 is the row after the last token of the prompt; those before it are negative.

    Raises:
        UsageError: no such prompt, or it has no such token.
    """
    found = cell.suite.get(prompt)
    whole, n_prompt = reference.sequences[found.idx], len(reference.prompts[found.idx])
    row = token_idx + n_prompt - 1
    if not 0 <= row < len(whole):
        raise UsageError(
            "the prompt has no such token",
            place=f"prompt {found.idx} ({found.name})",
            expected=f"{1 - n_prompt} to {len(whole) - n_prompt}; 0 chooses the first generated token",
            found=token_idx,
        )
    most = watched_rows(cell.facts)
    short = len(whole) <= most
    stop = len(whole) if short else row + 1
    return Place(
        prompt_idx=found.idx,
        prompt=found.name,
        token_idx=token_idx,
        n_prompt=n_prompt,
        sequence=tuple(whole[:stop]),
        first=0 if short else max(0, stop - most),
    )


def watched_rows(facts: ModelFacts) -> int:
    """Return how many rows of a model are captured with every site, so that the file stays near ``BYTES``."""
    row = 4 * facts.n_layer * (9 * facts.n_embd + 4 * facts.n_ff + 2 * facts.n_head * MOST_ROWS)
    return max(FEWEST_ROWS, min(MOST_ROWS, BYTES // row))
