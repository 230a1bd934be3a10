"""Where a red cell broke first, in words: the op or the position, how large against its limit, and how to trace it."""

from __future__ import annotations

from parity_lib.base.names import Kind, Rung
from parity_lib.judge.first_divergence import first_divergence, first_position
from parity_lib.pages.kit.op_names import op_words
from parity_lib.pages.kit.outcomes import kind_words
from parity_lib.pages.kit.text import Words, margin, number, signed
from parity_lib.records.verdicts import Divergence, Verdict

_POOLED = {
    Kind.OP: "Local error {} (NMSE)",
    Kind.RMS: "Rms {}",
    Kind.P99: "99th percentile of |delta| {} logits",
    Kind.KL: "Mean KL, llama.cpp to burn, {} nats",
    Kind.SPREAD: "Off its pinned value by {}",
}


def first_words(verdict: Verdict, words: Words) -> list[str]:
    """Return where the first divergence lies and how large it is; after an op, what became of it at the logits."""
    first = first_divergence(verdict)
    if first is None:
        return []
    sentences = divergence_words(first, words)
    if first.kind is Kind.OP:
        logits = first_divergence(verdict, Rung.T4)
        if logits is None:
            return [*sentences, "At the logits of the F32 twin every position is inside its limits."]
        sentences += ["At the logits of the F32 twin:", *divergence_words(logits, words)]
    return sentences


def divergence_words(divergence: Divergence, words: Words) -> list[str]:
    """Return where one divergence lies and how large it is against its limit."""
    sentences = []
    kind = kind_words(divergence.kind)
    if divergence.prompt_idx is not None:
        place = f"First: {place_words(divergence, words)}, {kind}"
        if divergence.top5_llamacpp and divergence.top5_burn:
            ours, theirs = divergence.top5_llamacpp[0][0], divergence.top5_burn[0][0]
            flip = f"top-1 of llama.cpp {words.token(ours)}, of burn {words.token(theirs)}"
            place += f": {flip}" if ours != theirs else f": top-1 of both {words.token(ours)}"
        sentences.append(place + ".")
    elif divergence.where is not None:
        sentences.append(f"First: {divergence.where}, {kind}.")
    if divergence.delta is not None:
        at = "" if divergence.delta_id is None else f" at {words.token(divergence.delta_id)}"
        ratio = margin(divergence.delta, divergence.limit)
        text = f"{_size(divergence)}{at}, limit {number(divergence.limit)} ({ratio})."
        sentences.append(text + (f" {_sentence(divergence.note)}" if divergence.note else ""))
    elif divergence.note:
        sentences.append(_sentence(divergence.note))
    return sentences


def named_words(verdict: Verdict) -> str:
    """Return the tensor or op that T2 or T3 named first, "T3 named first, layer 15 `attn_norm`"; empty without one."""
    for rung in (Rung.T2, Rung.T3):
        first = first_divergence(verdict, rung)
        if first is not None and first.where:
            what = op_words(first.where) if first.kind is Kind.OP else f"`{first.where}`"
            return f"{rung.value} named first, {what}"
    return ""


def place_words(divergence: Divergence, words: Words) -> str:
    """Return prompt and token of a divergence, before them the op where it is one's."""
    place = f"prompt {words.prompt(divergence.prompt_idx or 0)}, token {divergence.token_idx}"
    return f"{op_words(divergence.where)}, {place}" if divergence.kind is Kind.OP and divergence.where else place


def trace_command(verdict: Verdict) -> str:
    """Return the command that traces the first position that broke; empty without one, or for the user's own file."""
    first = first_position(verdict)
    if verdict.unpinned or first is None:
        return ""
    cell, candidate = verdict.cell, verdict.runs.get("candidate")
    command = f"parity trace {cell.model} {cell.quant} --prompt {first.prompt_idx} --token {first.token_idx}"
    command += f" --isa {cell.isa} --stack {cell.stack} --compute {cell.compute}"
    return command + (f" --fault {candidate.fault}" if candidate is not None and candidate.fault else "")


def _size(divergence: Divergence) -> str:
    if divergence.kind in _POOLED:
        return _POOLED[divergence.kind].format(number(divergence.delta, 3))
    return f"Delta {signed(divergence.delta)} {'ULP' if divergence.rung is Rung.T2 else 'logits'}"


def _sentence(note: str) -> str:
    return note[:1].upper() + note[1:] + ("" if note.endswith(".") else ".")
