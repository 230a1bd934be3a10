"""One place for how an outcome is shown: its word, its sign, its style, never by colour alone."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from parity_lib.base.names import Kind, LedgerClass, Outcome


@dataclass(frozen=True, slots=True)
class Style:
    """How an outcome is shown: a style, a sign that survives black and white, the word in a table."""

    css: str
    sign: str
    word: str


_STYLES = {
    Outcome.PARITY: Style("good", "✓", "ok"),
    Outcome.DIVERGED: Style("bad", "✗", "DIVERGED"),
    Outcome.INCOMPLETE: Style("warn", "!", "INCOMPLETE"),
    Outcome.INVALID: Style("bad", "✗", "INVALID"),
    Outcome.NOT_RUN: Style("not-run", "○", "not run"),
    Outcome.REPORTED: Style("plain", "·", "reported"),
}

# Worst first: a reader sees what failed before what is well.
_ORDER = (
    Outcome.INVALID,
    Outcome.DIVERGED,
    Outcome.INCOMPLETE,
    Outcome.NOT_RUN,
    Outcome.PARITY,
    Outcome.REPORTED,
)


_KIND = {
    Kind.TENSOR: "tensor differs",
    Kind.OP: "wrong on llama.cpp's own inputs",
    Kind.TOKENS: "token ids differ",
    Kind.TOP1: "top-1 differs",
    Kind.TOP5_SET: "top-5 set differs",
    Kind.LOGIT_DELTA: "delta over its limit",
    Kind.RMS: "rms over its limit",
    Kind.P99: "99th percentile of |delta| over its limit",
    Kind.KL: "mean KL, llama.cpp to burn, over its limit",
    Kind.SPREAD: "llama.cpp's self-spread differs from the pinned one",
    Kind.BITS: "two paths that must be bit-equal differ",
    Kind.ISA: "other instructions ran than were asked for",
    Kind.NON_FINITE: "not finite",
}


def kind_words(kind: Kind) -> str:
    """Return what a kind of divergence says, in plain words."""
    return _KIND[kind]


def ledger_words(ledger: str) -> str:
    """Return a ledger class in the words of the pages: the stored ``TIE`` is a near-tie."""
    return "near-tie" if ledger == LedgerClass.TIE else ledger.lower()


def style_of(outcome: Outcome) -> Style:
    """Return how an outcome is shown."""
    return _STYLES[outcome]


def severity(outcome: Outcome) -> int:
    """Return a sort key: failing outcomes first."""
    return _ORDER.index(outcome)


CAUGHT = Style("good", "✓", "caught")  # a red control that did its work
EXPECTED = Style("not-run", "✗", "DIVERGED, as expected")  # a known finding: red, and no news


def badge(shown: Style, text: str = "", address: str = "") -> Markup:
    """Return a sign and its word, or another text; a link where there is an address."""
    inside = Markup('<span class="sign" aria-hidden="true">{}</span> {}').format(shown.sign, text or shown.word)
    linked = Markup('<a href="{}">{}</a>').format(address, inside) if address else inside
    return Markup('<span class="badge {}">{}</span>').format(shown.css, linked)
