"""SentencePiece's tokenizer of merges by score, from a GGUF file's metadata.

Hugging Face's tokenizers cannot express it. There each pair has a rank of its own, so that of two pairs which give the
same token one always comes first; here the leftmost does. And there a character without a token is bytes before
anything is merged. With the vocabularies of Llama 2, Phi-3 and Baichuan neither matters: both give llama.cpp's ids for
700 texts each. With 24 made vocabularies of 70 short tokens, tokenizers gave other ids for 1,002 of 3,600 texts, and
this module for none.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection
from typing import Any

from parity_lib.tokenizers.metadata import BYTE, NAMED, UNUSED, USER_DEFINED, TokenizerMetadata

SPACE = "\u2581"  # stands for a space in the tokens
CONTROL_BY_NAME = "control-by-name"
# Tokens that llama.cpp takes for control tokens, whatever their type (0c1e570, llama-vocab.cpp: special_eog_ids).
_ENDS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
        *("<end_of_utterance>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
    )
)


class SentencePiece:
    """Characters merged in pairs, the token of the highest score first, of equal scores the leftmost.

    User-defined tokens are cut out of a text before that, the longest first, and each part between them is normalised
    for itself, as Hugging Face's LlamaTokenizer does. A character without a token becomes the tokens of its bytes.
    As in SentencePiece, no merge gives a control, unknown or byte token, and an unused one falls apart again.
    """

    def __init__(self, metadata: TokenizerMetadata, rules: Collection[str]) -> None:
        self._ids = {text: token for token, text in enumerate(metadata.tokens)}
        self._prefix = SPACE if metadata.space_prefix else ""
        kinds = list(zip(metadata.tokens, metadata.types, metadata.scores, strict=True))
        self._scores = {text: score for text, kind, score in kinds if kind not in (*NAMED, BYTE)}
        self._unused = frozenset(text for text, kind, _ in kinds if kind == UNUSED)
        left_out = _ENDS if CONTROL_BY_NAME in rules else ()
        own = [text for text, kind, _ in kinds if kind == USER_DEFINED and text and text not in left_out]
        longest_first = "|".join(map(re.escape, sorted(own, key=len, reverse=True)))
        self._own = re.compile(f"({longest_first})") if own else None

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS and EOS."""
        found: list[int] = []
        for number, part in enumerate(self._own.split(text) if self._own else [text]):
            if number % 2:
                found.append(self._ids[part])
            elif part:
                found += self._merged(self._prefix + part.replace(" ", SPACE))
        return found

    def bytes_of(self, text: str, kind: int) -> bytes:
        """Return the bytes of an ordinary token or a byte token."""
        return bytes.fromhex(text[3:5]) if kind == BYTE else text.replace(SPACE, " ").encode()

    def facts(self) -> dict[str, Any]:
        """Return the rules, for the record."""
        return {
            "space_prefix": bool(self._prefix),
            "scores": len(set(self._scores.values())),
            "source": "SentencePiece's bpe_model.cc; the text between user-defined tokens as in LlamaTokenizer",
        }

    def _merged(self, text: str) -> list[int]:
        parts, halves = list(text), dict[str, tuple[str, str]]()
        before, after = list(range(-1, len(parts) - 1)), [*range(1, len(parts)), -1]
        waiting: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0:
                return
            whole = parts[left] + parts[right]
            if whole in self._scores:
                heapq.heappush(waiting, (-self._scores[whole], left, right, len(whole)))
                halves[whole] = parts[left], parts[right]

        for right in range(1, len(parts)):
            offer(right - 1, right)
        while waiting:
            _, left, right, size = heapq.heappop(waiting)
            if not parts[left] or not parts[right] or len(parts[left]) + len(parts[right]) != size:
                continue  # one of the two was merged with another since
            parts[left], parts[right] = parts[left] + parts[right], ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [token for part in parts if part for token in self._tokens(part, halves)]

    def _tokens(self, part: str, halves: dict[str, tuple[str, str]]) -> list[int]:
        if part in self._unused and part in halves:
            return [token for half in halves[part] for token in self._tokens(half, halves)]
        if part in self._scores and part not in self._unused:
            return [self._ids[part]]
        return [self._ids[f"<0x{byte:02X}>"] for byte in part.encode()]
