"""The table of how hard a model is: places, a known model beside it, and what it means for an exp without a range."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from parity_lib.base.errors import FixtureError
from parity_lib.pages.cell.hardness import EXP_RANGE, hardness_table
from parity_lib.records.hardness import BiasNorms, Extreme, Hardness, load_known
from parity_lib.records.measured import Measured
from parity_lib.records.verdicts import Verdict

MakeVerdict = Callable[..., Verdict]
HARD = Hardness(
    rows=128,
    score=Extreme(1458.25, "kq-0", 3, 17, 5),
    depth=Extreme(-84.6, "kq-7", 0, -2, 11),
    residual=Extreme(1270.0, "l_out-3", 3, 4),
    biases={"attn_k.bias": BiasNorms(392.7, "blk.0.attn_k.bias", 11.8)},
)


def shown(make_verdict: MakeVerdict, hard: Hardness) -> str:
    return hardness_table(replace(make_verdict(), measured=Measured(hardness=hard))).plain


def test_each_extreme_stands_with_its_place_and_a_known_model_beside(make_verdict: MakeVerdict) -> None:
    plain = shown(make_verdict, HARD)
    assert "1,458" in plain
    assert "kq-0, head 5" in plain
    assert "token 17" in plain
    assert "392.7" in plain
    assert "blk.0.attn_k.bias" in plain
    assert "smollm2-135m Q8_0" in plain
    assert f"wrong below {EXP_RANGE}: these rows reach -84.60, 2.70 above it." in plain


def test_scores_beyond_the_range_of_exp_are_said(make_verdict: MakeVerdict) -> None:
    deeper = replace(HARD, depth=replace(HARD.depth, value=-1200.0))
    assert "these rows reach -1,200, beyond it." in shown(make_verdict, deeper)


def test_a_record_without_it_says_so(make_verdict: MakeVerdict) -> None:
    assert "not in this record" in hardness_table(replace(make_verdict(), measured=Measured())).plain


def test_the_known_models_are_loaded_strictly(tmp_path: Path) -> None:
    assert set(load_known()) == {"smollm2-135m"}
    path = tmp_path / "hardness.toml"
    path.write_text('schema = "parity/hardness/1"\n[[model]]\nid = "x"\nquant = "Q8_0"\nscore = 1.0\n')
    with pytest.raises(FixtureError, match="'depth' is missing"):
        load_known(path)
