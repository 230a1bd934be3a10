"""The split of a delta by engine and ISA target: parts that are known beforehand come out, and add up."""

from __future__ import annotations

import numpy as np
import pytest

from parity_lib.base.errors import TraceMismatchError
from parity_lib.judge.isa_split import PAIRS, split_rows
from parity_lib.records.traces import F32

SHAPE = (130, 40)


def rows(engine: float, target: float, both: float) -> list[F32]:
    """Reference and candidate on the first ISA target, then on the second, with independent parts of known sizes."""
    random = np.random.default_rng(5)
    base = random.standard_normal(SHAPE)
    e, i, x = (random.standard_normal(SHAPE) * size / 2 for size in (engine, target, both))
    return [(base + s * e + t * i + s * t * x).astype(np.float32) for t, s in ((-1, -1), (-1, 1), (1, -1), (1, 1))]


def test_known_parts_come_out() -> None:
    split = split_rows("as deployed", rows(0.02, 0.01, 0.0))
    assert (split.engine, split.target, split.both) == pytest.approx((0.8, 0.2, 0.0), abs=0.02)
    assert split.engine + split.target + split.both == pytest.approx(1)
    assert [pair.name for pair in split.pairs] == list(PAIRS)
    assert [pair.rms_over_std for pair in split.pairs] == pytest.approx([0.02, 0.02, 0.01, 0.01], rel=0.1)


def test_an_engine_that_does_not_mind_the_target_shares_it_with_the_interplay() -> None:
    r1, c, r2, _ = rows(0.02, 0.01, 0.0)
    split = split_rows("F32 twin", [r1, c, r2, c])
    assert split.target == pytest.approx(split.both, rel=1e-6)
    candidate = split.pairs[3]
    assert (candidate.rms_over_std, candidate.max_abs, candidate.bit_equal) == (0.0, 0.0, len(c))
    assert candidate.top1_share == 1
    assert split.positions == len(c)


def test_nothing_differs_and_nothing_is_shared_out() -> None:
    [same] = [rows(0, 0, 0)[0]]
    split = split_rows("as deployed", [same] * 4)
    assert (split.engine, split.target, split.both) == (0, 0, 0)
    assert all(pair.bit_equal == len(same) for pair in split.pairs)


def test_other_rows_are_refused() -> None:
    four = rows(0.1, 0.1, 0.1)
    with pytest.raises(TraceMismatchError, match="the same rows"):
        split_rows("as deployed", [*four[:3], four[3][:-1]])
    with pytest.raises(TraceMismatchError, match="the same rows"):
        split_rows("as deployed", four[:3])


@pytest.mark.parametrize("run", range(4))
def test_a_logit_that_is_not_finite_is_refused_and_a_constant_row_is_counted(run: int) -> None:
    given = rows(0.02, 0.01, 0.0)
    for part in given:
        part[3] = 5.0
    assert np.isfinite(split_rows("as deployed", given).engine)
    given[run][7, 3] = np.nan
    with pytest.raises(TraceMismatchError, match="not finite"):
        split_rows("as deployed", given)
