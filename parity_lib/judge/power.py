"""How much a green cell can have seen: how many positions differ, and the smallest fault rate that shows in them.

It stands apart because no rung judges by it: its numbers are shown beside a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence

from parity_lib.records.measured import Power, TextNumbers

N_GRAM = 3
CONFIDENCE = 0.95

Tokens = Sequence[int]


def text_numbers(sequences: Sequence[Tokens], prompt_lengths: Sequence[int]) -> tuple[TextNumbers, ...]:
    """Return for each prompt how much its text repeats itself.

    Args:
        sequences: the tokens that each prompt was fed, one for each position.
        prompt_lengths: how many of them are the prompt's own.

    Returns:
        ``positions``; ``effective_positions``, of which those that follow the same three tokens as an earlier one
        count once; ``distinct_3grams``, the share of different ones among the 3-grams of the fed tokens that were
        generated, None where there are fewer than three.
    """
    numbers = []
    for prompt_idx, (tokens, n_prompt) in enumerate(zip(sequences, prompt_lengths, strict=True)):
        generated = _grams(tokens[n_prompt:])
        numbers.append(
            TextNumbers(
                prompt_idx=prompt_idx,
                positions=len(tokens),
                effective_positions=effective_positions(tokens),
                distinct_3grams=len(set(generated)) / len(generated) if generated else None,
            )
        )
    return tuple(numbers)


def effective_positions(tokens: Tokens) -> int:
    """Return how many positions of one prompt differ in their last three fed tokens; the first two always count.

    >>> effective_positions([1, 2, 3] * 40) < effective_positions(list(range(120)))
    True
    """
    return min(len(tokens), N_GRAM - 1) + len(set(_grams(tokens)))


def _grams(tokens: Tokens) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + N_GRAM]) for i in range(len(tokens) - N_GRAM + 1)]


def power_statement(n_positions: int) -> Power:
    """Return the smallest flip rate that so many independent positions show at least once, with 95 % confidence.

    With rate p, n positions show nothing with probability ``(1 - p)^n``; that is 5 % at ``p = 1 - 0.05^(1/n)``.
    Without a position no rate is detectable: 1.0.
    """
    rate = 1.0 - (1.0 - CONFIDENCE) ** (1.0 / n_positions) if n_positions else 1.0
    return Power(n_positions, rate, CONFIDENCE)
