"""Top-k and statistics of logit rows over the whole vocabulary, each with its formula.

Rows are float32, shape ``(n, n_vocab)``; every sum is float64. With r and c a row of the reference and of the
candidate, d = c - r, p = softmax(r), q = softmax(c), V = n_vocab and lse(x) = log(sum(exp(x))):

========== ================================================================== ===== ===================
logsumexp  lse(x)                                                             nats  of one row
mean       sum(x) / V                                                         logit of one row
std        sqrt(sum((x - mean(x))^2) / V)                                     logit of one row
rms        sqrt(sum(d^2) / V)                                                 logit 0 is equal
max_abs    max(abs(d)); max_id is the lowest id that reaches it               logit 0 is equal
kl_ref_cand  sum(p log(p/q)) = lse(c) - lse(r) - sum(p d)                     nats  0 is equal
kl_cand_ref  sum(q log(q/p)) = sum(q d) - lse(c) + lse(r)                     nats  0 is equal
jsd        (sum(p log(p/m)) + sum(q log(q/m))) / 2 with m = (p + q) / 2       nats  0 is equal, log 2 most
========== ================================================================== ===== ===================

KL and JSD are differences of larger numbers: their rounding error is about 1e-15 nats, and what falls below zero
is set to zero. A row with a NaN or an infinity has no statistics: its numbers are NaN, its ``max_id`` is -1 and the
values are counted in ``n_nonfinite``, so that nothing downstream can take it for small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import TraceMismatchError
from parity_lib.base.names import TOP_STORED
from parity_lib.records.row_numbers import Summary
from parity_lib.records.traces import F32, F64, I32

_BLOCK = 1 << 16  # logits in one block: its six float64 buffers have 3 MB, what a share of the caches holds
_DOT = 8192  # the longest dot product that OpenBLAS keeps in one thread is 10,000
_GROUP = 64  # top_k reads one maximum for each so many logits before it reads any logit


@dataclass(frozen=True, slots=True, eq=False)
class RowStatistics:
    """One engine's rows; the fields are those of ``LogitTrace``."""

    topk_ids: I32  # (n, k)
    topk_logits: F32  # (n, k)
    logsumexp: F64  # (n,)
    std: F64  # (n,)
    mean: F64  # (n,)
    n_nonfinite: I32  # (n,)


@dataclass(frozen=True, slots=True, eq=False)
class PairStatistics:
    """Both engines' rows against each other; the fields are those of ``PairTrace``."""

    reference: RowStatistics
    candidate: RowStatistics
    candidate_at_reference: F32  # (n, k)
    reference_at_candidate: F32  # (n, k)
    rms: F64  # (n,)
    max_abs: F64  # (n,)
    max_id: I32  # (n,)
    kl_ref_cand: F64  # (n,)
    kl_cand_ref: F64  # (n,)
    jsd: F64  # (n,)


def top_k(rows: F32, k: int = TOP_STORED) -> I32:
    """Return the ids of the k largest logits of each row, largest first, ``(n, min(k, n_vocab))``.

    Equal logits (and the two zeros) stand in the order of their ids. NaN is lower than everything, also than
    minus infinity, so that a NaN can only be in the top where nothing else is left.

    >>> top_k(np.array([[0.5, 2.0, np.nan, 2.0]], np.float32), k=3)
    array([[1, 3, 0]], dtype=int32)
    """
    _check(rows)
    k = min(k, rows.shape[1])
    ids = np.empty((len(rows), k), np.int32)
    for i, row in enumerate(rows):
        ids[i] = _top_of_row(row, k)
    return ids


def _top_of_row(row: F32, k: int) -> npt.NDArray[np.integer]:
    near: npt.NDArray[np.integer] | None = None
    n_groups = len(row) // _GROUP
    if n_groups >= k:
        # Groups are columns, so that the maximum runs over contiguous memory.
        maxima = row[: n_groups * _GROUP].reshape(_GROUP, n_groups).max(axis=0)
        # k groups have a logit of at least this: no smaller one can be in the top, all equal ones may.
        floor = np.partition(maxima, n_groups - k)[n_groups - k]
        near = np.flatnonzero(row >= floor)
    if near is None or len(near) < k:  # fewer where a NaN hides its group's numbers: then every logit is read
        near = np.arange(len(row))
    # A stable sort keeps ties in the order of ids, and numpy sorts NaN behind plus infinity.
    return near[np.argsort(-row[near], kind="stable")[:k]]


def row_statistics(rows: F32) -> RowStatistics:
    """Return top-k, logsumexp, standard deviation and the count of non-finite values of each row.

    Raises:
        TraceMismatchError: not a float32 array of two dimensions, or rows without a logit.

    >>> found = row_statistics(np.array([[0.0, 0.0, 0.0, 0.0]], np.float32))
    >>> float(found.logsumexp[0].round(6)), float(found.std[0])
    (1.386294, 0.0)
    """
    _check(rows)
    sums = _SideSums(*rows.shape)
    _in_blocks(rows.shape, lambda at, work: sums.add(rows[at], at, work.reference))
    return sums.statistics(rows)


def pair_statistics(reference: F32, candidate: F32) -> PairStatistics:
    """Return the statistics of both sides and of their difference, row by row.

    Raises:
        TraceMismatchError: the shapes differ, or an array is not float32 of two dimensions.

    >>> found = pair_statistics(np.array([[1.0, 0.0]], np.float32), np.array([[1.5, 0.5]], np.float32))
    >>> float(found.rms[0]), abs(float(found.kl_ref_cand[0])) < 1e-12
    (0.5, True)
    """
    _check(reference)
    _check(candidate)
    if reference.shape != candidate.shape:
        raise TraceMismatchError("rows differ in shape", expected=reference.shape, found=candidate.shape)
    sums = _PairSums(*reference.shape)
    _in_blocks(reference.shape, lambda at, work: sums.add(reference[at], candidate[at], at, work))
    return sums.statistics(reference, candidate)


class _Side:
    """Buffers of one side of a block. They are used again for each block: fresh memory costs a fault a page."""

    def __init__(self, n_rows: int, n_vocab: int) -> None:
        self.value = np.empty((n_rows, n_vocab))  # x
        self.shifted = np.empty((n_rows, n_vocab))  # x - max(x)
        self.weight = np.empty((n_rows, n_vocab))  # exp(x - max(x))


class _Work:
    """The buffers of one block of rows of a pair."""

    def __init__(self, n_rows: int, n_vocab: int) -> None:
        self.reference = _Side(n_rows, n_vocab)
        self.candidate = _Side(n_rows, n_vocab)


class _SideSums:
    """The sums over the vocabulary of one side, ``(n,)`` each; y = x - max(x) and w = exp(y)."""

    def __init__(self, n: int, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.topk_ids = np.empty((n, min(TOP_STORED, n_vocab)), np.int32)
        self.top = np.empty(n)  # max(x)
        self.y, self.yy, self.w, self.wy = (np.empty(n) for _ in range(4))

    def add(self, rows: F32, at: slice, work: _Side) -> tuple[F64, F64, F64]:
        """Sum a block of rows; returns x, y and w, views of the buffers."""
        x, y, w = (buffer[: len(rows)] for buffer in (work.value, work.shifted, work.weight))
        ids = top_k(rows, self.topk_ids.shape[1])
        self.topk_ids[at] = ids
        self.top[at] = rows[np.arange(len(rows)), ids[:, 0]]
        np.copyto(x, rows)
        np.subtract(x, self.top[at, None], out=y)
        np.exp(y, out=w)
        self.y[at], self.w[at] = y.sum(axis=1), w.sum(axis=1)
        self.yy[at], self.wy[at] = _dot(y, y), _dot(w, y)
        return x, y, w

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """Return which rows are finite throughout: finite float32 values cannot overflow a float64 sum."""
        return np.asarray(np.isfinite(self.y))

    def statistics(self, rows: F32) -> RowStatistics:
        """Return the statistics of all rows."""
        n_nonfinite = np.zeros(len(rows), np.int32)
        for i in np.flatnonzero(~self.finite):
            n_nonfinite[i] = self.n_vocab - np.isfinite(rows[i]).sum()
        with np.errstate(invalid="ignore", over="ignore"):
            shifted_mean = self.y / self.n_vocab
            # Shifted by the maximum, mean^2 is at most V times the variance: that costs log10(V) of 16 digits.
            std = np.sqrt(np.maximum(self.yy / self.n_vocab - shifted_mean * shifted_mean, 0.0))
            logsumexp, mean = self.top + np.log(self.w), self.top + shifted_mean
        for values in (logsumexp, std, mean):
            values[~self.finite] = np.nan
        return RowStatistics(self.topk_ids, _at(rows, self.topk_ids), logsumexp, std, mean, n_nonfinite)


class _PairSums:
    """The sums over the vocabulary of a pair, ``(n,)`` each; d = candidate - reference."""

    def __init__(self, n: int, n_vocab: int) -> None:
        self.reference, self.candidate = _SideSums(n, n_vocab), _SideSums(n, n_vocab)
        self.wd_reference, self.wd_candidate, self.dd, self.max_abs, self.mix = (np.empty(n) for _ in range(5))
        self.max_id = np.empty(n, np.int32)

    def add(self, reference: F32, candidate: F32, at: slice, work: _Work) -> None:
        """Sum a block of rows of both sides."""
        x_r, y_r, w_r = self.reference.add(reference, at, work.reference)
        x_c, _, w_c = self.candidate.add(candidate, at, work.candidate)
        d = np.subtract(x_c, x_r, out=x_c)
        self.wd_reference[at], self.wd_candidate[at] = _dot(w_r, d), _dot(w_c, d)
        self.dd[at] = _dot(d, d)
        size = np.abs(d, out=d)
        ids = size.argmax(axis=1)
        self.max_id[at] = ids
        self.max_abs[at] = size[np.arange(len(ids)), ids]
        mixture = np.multiply(w_r, (self.candidate.w[at] / self.reference.w[at])[:, None], out=w_r)
        mixture += w_c
        self.mix[at] = _sum_x_log_x(mixture, y_r)

    def statistics(self, reference: F32, candidate: F32) -> PairStatistics:
        """Return the statistics of all rows; those of a row with a non-finite value are NaN, its max_id is -1."""
        r, c = self.reference, self.candidate
        bad = ~(r.finite & c.finite)
        with np.errstate(invalid="ignore", over="ignore"):
            lse_step = (c.top - r.top) + np.log(c.w / r.w)  # lse(c) - lse(r)
            kl_ref_cand = lse_step - self.wd_reference / r.w
            kl_cand_ref = self.wd_candidate / c.w - lse_step
            # m = (w_r s_c/s_r + w_c) / (2 s_c): entropy of the mixture less the mean of the two entropies.
            entropy_r, entropy_c = np.log(r.w) - r.wy / r.w, np.log(c.w) - c.wy / c.w
            jsd = np.log(2 * c.w) - self.mix / (2 * c.w) - (entropy_r + entropy_c) / 2
            rms = np.sqrt(self.dd / r.n_vocab)
            kl_ref_cand, kl_cand_ref, jsd = (np.maximum(values, 0.0) for values in (kl_ref_cand, kl_cand_ref, jsd))
        for values in (rms, self.max_abs, kl_ref_cand, kl_cand_ref, jsd):
            values[bad] = np.nan
        self.max_id[bad] = -1
        return PairStatistics(
            reference=r.statistics(reference),
            candidate=c.statistics(candidate),
            candidate_at_reference=_at(candidate, r.topk_ids),
            reference_at_candidate=_at(reference, c.topk_ids),
            rms=rms,
            max_abs=self.max_abs,
            max_id=self.max_id,
            kl_ref_cand=kl_ref_cand,
            kl_cand_ref=kl_cand_ref,
            jsd=jsd,
        )


def _sum_x_log_x(x: F64, scratch: F64) -> F64:
    """Return sum(x log x) of each row with 0 log 0 = 0; overwrites ``scratch``."""
    sums = _dot(x, np.log(x, out=scratch))
    if np.isnan(sums).any():  # rare: both probabilities underflow to zero somewhere, or a row is not finite
        np.log(np.maximum(x, np.finfo(np.float64).tiny, out=scratch), out=scratch)
        sums = _dot(x, scratch)
    return sums


def _dot(a: F64, b: F64) -> F64:
    """Return sum(a b) of each row."""
    whole = a.shape[1] // _DOT * _DOT
    if whole == 0:
        return np.asarray(np.vecdot(a, b), np.float64)
    # BLAS splits a long vector between its threads, and the last bit would depend on their number.
    sums: F64 = np.vecdot(a[:, whole:], b[:, whole:])
    for i in range(len(sums)):
        sums[i] += np.vecdot(a[i, :whole].reshape(-1, _DOT), b[i, :whole].reshape(-1, _DOT)).sum()
    return sums


def _at(rows: F32, ids: I32) -> F32:
    return np.take_along_axis(rows, ids.astype(np.intp), axis=1)


def _in_blocks(shape: tuple[int, ...], add: Callable[[slice, _Work], object]) -> None:
    """Call ``add`` for each block of rows with the same buffers.

    One thread: numpy holds the interpreter's lock in half of these calls, and two threads were measured slower.
    """
    n, n_vocab = shape
    step = max(1, _BLOCK // n_vocab)
    work = _Work(step, n_vocab)
    # NaN and infinity go through the sums; `finite` finds their rows, and their numbers become NaN at the end.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for start in range(0, n, step):
            add(slice(start, min(start + step, n)), work)


def _check(rows: F32) -> None:
    if rows.ndim != 2 or rows.dtype != np.float32 or rows.shape[1] == 0:
        raise TraceMismatchError(
            "rows are not logits", expected="float32 (n, n_vocab)", found=f"{rows.dtype} {rows.shape}"
        )


def row_digests(rows: F32) -> npt.NDArray[np.uint8]:
    """Return the SHA-256 of each row's little-endian bytes, ``(n, 32)``, to find equal rows without storing them.

    >>> digests = row_digests(np.array([[1, 2], [1, 2], [1, 3]], np.float32))
    >>> digests.shape, bool((digests[0] == digests[1]).all()), bool((digests[0] == digests[2]).all())
    ((3, 32), True, False)
    """
    _check(rows)
    digests = [hashlib.sha256(np.ascontiguousarray(row, "<f4").data).digest() for row in rows]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(rows), 32).copy()


def summary(values: F64) -> Summary:
    """Return mean, median, 95th and 99th percentile and maximum.

    The q-th percentile is the smallest value that at least q % of the values do not exceed: no interpolation, so
    that it is a value that occurred.

    Raises:
        TraceMismatchError: there is no value.

    >>> summary(np.array([1.0, 2.0, 3.0, 10.0]))
    Summary(mean=4.0, p50=2.0, p95=10.0, p99=10.0, max=10.0)
    """
    if values.size == 0:
        raise TraceMismatchError("no position to summarise", expected="at least one")
    if np.isnan(values).any():
        return Summary(np.nan, np.nan, np.nan, np.nan, np.nan)
    p50, p95, p99 = (float(point) for point in np.percentile(values, (50, 95, 99), method="inverted_cdf"))
    return Summary(float(values.mean()), p50, p95, p99, float(values.max()))


def pooled_rms_over_std(rms: F64, std: F64) -> float:
    """Return sqrt(sum(rms^2) / sum(std^2)) over positions: 0 is equal, no unit, NaN if a position is.

    Pooled and not averaged: a position weighs as much as its logits spread. No position at all, or a reference
    whose rows are all constant and a candidate that differs, gives infinity; two equal constants give 0.

    >>> pooled_rms_over_std(np.array([0.3, 0.4]), np.array([3.0, 4.0]))
    0.1
    """
    if len(rms) == 0:
        return float("inf")
    error, scale = float(np.sum(rms * rms)), float(np.sum(std * std))
    if scale == 0:
        return 0.0 if error == 0 else float("inf")
    return float(np.sqrt(error / scale))


def std_of_all(mean: F64, std: F64) -> float:
    """Return the standard deviation of all logits of all rows together: sqrt(mean(std^2) + variance(mean)).

    About twice the pooled deviation within rows on a trained model, because the mean moves from row to row, which
    softmax does not see. Published tables divide by this one. NaN if a row is, or where there is none.

    >>> std_of_all(mean=np.array([-3.0, 3.0]), std=np.array([4.0, 4.0]))
    5.0
    """
    return float(np.sqrt(np.mean(std * std) + np.var(mean))) if len(std) else float("nan")


def pair_sigma(errors: F64) -> F64:
    """Return the spread of differences of errors, ``(n, k) -> (n,)``: sqrt(mean over i < j of (e_i - e_j)^2).

    The error that all logits of a position share cancels, as it does in softmax and in a margin. Equal to
    sqrt(2 k / (k - 1)) times the (population) standard deviation of the k errors; with one error it is 0.

    >>> pair_sigma(np.array([[5.0, 5.0], [0.0, 2.0]])).tolist()
    [0.0, 2.0]
    """
    k = errors.shape[1]
    if k < 2:
        return np.zeros(len(errors))
    return np.asarray(errors.std(axis=1) * np.sqrt(2 * k / (k - 1)), np.float64)


def delta_of_tops(
    reference_ids: I32,
    reference_logits: F32,
    candidate_at_reference: F32,
    candidate_ids: I32,
    candidate_logits: F32,
    reference_at_candidate: F32,
) -> tuple[F64, I32]:
    """Return delta and delta_id of each row: candidate minus reference at the id where it is largest in size.

    The ids compared are the union of the two tops that are passed in, ``(n, k)`` each; the lower id wins a tie.
    One id, never the difference across two ids. NaN where a logit that is read is NaN.
    """
    ids = np.concatenate((reference_ids, candidate_ids), axis=1)
    ours = np.concatenate((candidate_at_reference, candidate_logits), axis=1).astype(np.float64)
    theirs = np.concatenate((reference_logits, reference_at_candidate), axis=1).astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and that is what it is
        errors = ours - theirs
    size = np.where(np.isnan(errors), np.inf, np.abs(errors))
    best = np.lexsort((ids, -size), axis=1)[:, :1]
    return np.take_along_axis(errors, best, axis=1)[:, 0], np.take_along_axis(ids, best, axis=1)[:, 0]
