"""What ``parity stack`` says, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parity_lib.capture.fork_reader import TypeResult
    from parity_lib.capture.stack_diagnosis import Without, WrongOp
    from parity_lib.capture.tiles import Tiles
    from parity_lib.compare.bits import BitDifference


def bits_words(found: BitDifference) -> str:
    """Return a comparison in a sentence."""
    total = f"{found.n_rows:,} positions x {found.n_vocab:,} logits"
    if found.equal:
        return f"all bits equal, {total}"
    words = f"{found.n_rows - found.equal_rows:,} of {total} differ in bits"
    words += f" ({found.n_rows * found.n_vocab - found.equal_logits:,} logits)"
    words += f"; rms {found.rms_over_std:.3g} of std, largest {found.max_abs:.3g}"
    words += f"; top-1 equal at {found.same_top1:,} positions"
    if any(found.nonfinite):
        words += f"; not finite {found.nonfinite[0]:,} against {found.nonfinite[1]:,} logits"
    part = found.part
    if part is not None:
        words += f"; first at prompt {part.position.prompt_idx}, token {part.position.token_idx}, id {part.token}:"
        words += f" {part.first:.7g} against {part.second:.7g}"
    return words


def op_lines(op: WrongOp) -> list[str]:
    """Return what is wrong with one kind of op, in two or three lines."""
    first, worst = op.first, op.worst
    share = f"{op.n_wrong} of {op.n_all} over their limit"
    there = f"NMSE {worst.nmse:.2g}, there {worst.position_nmse:.2g}, largest difference {worst.max_abs:.3g}"
    lines = [
        f"WRONG {op.site} ({op.op}): {share}, first {first.site} in {first.phase}, NMSE {first.nmse:.2g}",
        f"      worst {worst.site}, position {worst.position}: {there}",
    ]
    return lines + ([f"      its inputs there: {op.inputs}"] if op.inputs else [])


def without_line(without: Without) -> str:
    """Return the model with some ops replaced, in a line."""
    rung, bits = without.twin, without.bits
    words = f"rms {bits.rms_over_std:.2g} of std from crates-io, top-1 equal at {bits.same_top1:,} of {bits.n_rows:,}"
    if bits.nonfinite[1]:
        words += f", {bits.nonfinite[1]:,} logits not finite"
    if rung is None or rung.worst is None or rung.limit is None:
        return f"  {without.side}: {words}"
    return f"  {without.side}: T4 {rung.outcome}, worst {rung.worst:.3g} of limit {rung.limit:.3g} {rung.unit}; {words}"


def tiles_lines(found: Tiles) -> list[str]:
    """Return how the fork's BF16 kernel did, and which path it took."""
    lines = []
    for words, errors in (("rounded to nearest even", found.nearest), ("rounded by the fork's conversion", found.own)):
        over = sum(not error.share <= 1 for error in errors)
        worst = max(errors, key=lambda error: error.share)
        lines.append(
            f"  activations {words}: {over} of {len(errors)} products over their limit; worst {worst.site}, "
            f"{worst.phase}: NMSE {worst.nmse:.2g}, {worst.share:.2g} of its limit"
        )
    path = "AMX tiles by its own dispatch, not proven" if found.amx else "its fallback: AMX did not run"
    lines.append(f"  path: {path}")
    lines += [f"    {line.strip()}" for line in found.report.splitlines() if line.strip()]
    return lines


def reader_line(result: TypeResult) -> str:
    """Return how the fork's reader did on the tensors of one type."""
    head = (
        f"{'ok   ' if result.right else 'WRONG'} {result.kind:5} {result.n_equal} of {result.n_tensors} tensors equal"
    )
    if result.n_values:
        share = result.same_values / result.n_values
        head += f"; {share:.1%} of {result.n_values:,} values, cosine {result.cosine:.4f}"
    return head + (f"; refused: {result.refused}" if result.refused else "")
