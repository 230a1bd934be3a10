"""Refuse what cannot be fed, before an engine sees it."""

from __future__ import annotations

from collections.abc import Sequence

from parity_lib.errors import EngineError


def checked(sequences: Sequence[Sequence[int]], limit: int, n_vocab: int, name: str) -> list[list[int]]:
    """Return the sequences as lists of plain ints.

    Args:
        sequences: token ids, each sequence from an empty cache.
        limit: positions of the model's context.
        n_vocab: ids of the vocabulary.
        name: of the model file, for the message.

    Raises:
        EngineError: there is no sequence, one is empty or longer than the context, or an id is no token.
    """
    if not sequences:
        raise EngineError(
            "there is nothing to feed",
            place=name,
            expected="at least one sequence",
            found="none",
            next_step="correct the plan or the prompts",
        )
    rows = [[int(token) for token in tokens] for tokens in sequences]
    for index, tokens in enumerate(rows):
        place = f"{name}, sequence {index}"
        if not 0 < len(tokens) <= limit:
            raise EngineError(
                "a sequence does not fit the model's context",
                place=place,
                expected=f"1 to {limit} tokens",
                found=len(tokens),
                next_step="shorten the prompt or generate fewer tokens",
            )
        wrong = next((token for token in tokens if not 0 <= token < n_vocab), None)
        if wrong is not None:
            raise EngineError(
                "a token id is outside of the vocabulary",
                place=place,
                expected=f"0 to {n_vocab - 1}",
                found=wrong,
                next_step="tokenize with this model's own vocabulary",
            )
    return rows
