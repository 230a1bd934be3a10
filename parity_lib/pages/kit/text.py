"""How numbers, tokens and names are written in every report: few digits, visible whitespace."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from markupsafe import Markup

from parity_lib.records.prompts import PromptSuite
from parity_lib.records.verdicts import margin_words

NONE = "–"  # what a table prints where there is no number; never an empty cell
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{12,}\b")
_RUN = re.compile(r"([␣↵⇥])\1{3,}")  # code is indented: eight marks say less than a number
_BRIEF = 24  # characters
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def count(value: int) -> str:
    """Return a whole number with thousands separated, ``1,412``."""
    return f"{value:,}"


def number(value: float | None, digits: int = 2) -> str:
    """Return a measured number with ``digits`` significant digits, ``6.8e-02`` or ``0.94``.

    From 0.001 to 10,000 it is written plainly, elsewhere with an exponent; not finite is said in words.
    """
    if value is None:
        return NONE
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e4:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """Return a delta with its sign, ``+0.0678``; a true minus sign is not used, so that it can be copied."""
    if value is None:
        return NONE
    return number(value, digits) if value < 0 or not math.isfinite(value) else "+" + number(value, digits)


def percent(share: float | None) -> str:
    """Return a share of 1 as per cent with one digit; ``100 %`` is printed only where it is exactly 1."""
    if share is None or not math.isfinite(share):
        return NONE if share is None else number(share)
    if share in (0.0, 1.0):
        return f"{share * 100:.0f} %"
    return f"{min(max(share * 100, 0.1), 99.9):.1f} %"


def margin(worst: float | None, limit: float | None) -> str:
    """Return how far inside or over the limit the worst case is: ``4.5x inside``, ``340x over``."""
    if worst is None or limit is None or math.isnan(limit):
        return NONE
    if not math.isfinite(worst):
        return "over"
    if limit == 0 or worst == 0:
        return "equal" if worst == 0 else "over"
    return margin_words(limit / abs(worst))


def duration(seconds: float) -> str:
    """Return a time as ``0.4 s``, ``12 s``, ``3 min 20 s`` or ``1 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"


def size(n_bytes: int) -> str:
    """Return a number of bytes as MB or GB, powers of ten, ``98.4 MB``."""
    if n_bytes >= 1_000_000_000:
        return f"{n_bytes / 1e9:.2f} GB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 100_000 else f"{n_bytes:,} bytes"


def short(text: str) -> str:
    """Return a text with every long hash or commit in it cut to its first 12 digits."""
    return _DIGEST.sub(r"\1…", text)


def quoted(token: bytes | str) -> str:
    """Return a token's text in quotes, whitespace and control characters visible, stray bytes as hex.

    Four or more of one whitespace are counted, ``"␣×8"``.
    """
    text = token.decode("utf-8", errors="backslashreplace") if isinstance(token, bytes) else token
    shown = "".join(_VISIBLE.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
    return f'"{_RUN.sub(lambda run: f"{run[1]}×{len(run[0])}", shown)}"'


@dataclass(frozen=True, slots=True)
class Words:
    """The texts behind the numbers: what a token id spells and what a prompt is called."""

    tokens: Mapping[int, bytes | str] = field(default_factory=dict)  # token id -> its bytes
    prompts: Mapping[int, str] = field(default_factory=dict)  # prompt_idx -> name

    def token(self, token_id: int) -> str:
        """Return ``578 "␣the"``, or the id alone where the file has no text for it."""
        text = self.tokens.get(token_id)
        return str(token_id) if text is None else f"{token_id} {quoted(text)}"

    def brief(self, token_id: int) -> str:
        """Return the same for a narrow column, a long text cut, with all of it as its title."""
        whole = self.token(token_id)
        if len(whole) <= _BRIEF:
            return whole
        return Markup('<span title="{}">{}…"</span>').format(whole, whole[: _BRIEF - 2])

    def prompt(self, prompt_idx: int) -> str:
        """Return ``3 (long-1)``, or the index alone."""
        name = self.prompts.get(prompt_idx)
        return str(prompt_idx) if name is None else f"{prompt_idx} ({name})"


def words_of(tokens: Mapping[int, bytes | str], prompts: PromptSuite) -> Words:
    """Return the texts of a cell, from what the reference says its tokens spell and from the prompts' names."""
    return Words(tokens, {prompt.idx: prompt.name for prompt in prompts.prompts})


def code_markup(sentence: str) -> Markup:
    """Return a sentence as markup; what stands between backticks becomes code."""
    parts = [Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(sentence.split("`"))]
    return Markup().join(parts)
