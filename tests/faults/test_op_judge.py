"""The list of faults of one op, and how a trial is judged."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import FixtureError
from parity_lib.base.json_text import encode
from parity_lib.engines import sites
from parity_lib.faults.op_judge import (
    BIAS,
    EDITS,
    OUTPUT_BIAS,
    Trial,
    TrialTable,
    judge_trial,
    load_op_faults,
    share_of,
)
from parity_lib.numerics.op_error import OpError, op_error
from parity_lib.records.verdicts import CellId

CELL = CellId("m", "Q8_0", "avx512", "crates-io", "f32")


def error(site: str, size: float) -> OpError:
    reference = np.ones((1, 4), np.float32)
    candidate = reference + np.array([[0, 0, size, 0]], np.float32)
    return op_error(site, sites.table(site).op, 1, 7, reference, candidate)


def trial(expected: str, *errors: OpError) -> Trial:
    return judge_trial("a fault", "what it is", "engine", expected, errors, 1.0)


def table(*trials: Trial) -> TrialTable:
    return TrialTable(CELL, 48, 100, 0.1, trials, {}, "here", "2026-01-01T00:00:00+00:00", 1.0)


def test_the_shipped_list_is_spread_over_ops_and_layers() -> None:
    listed = load_op_faults()
    plain = [seeded for seeded in listed if seeded.needs not in (BIAS, OUTPUT_BIAS)]
    assert len(plain) >= 25
    named = {sites.split(seeded.at(seeded.block(30))[1])[0] for seeded in listed}
    assert named >= {site.name for site in sites.BLOCK} - {"Kcur", "Vcur", "kqv", "kqv_out", "ffn_inp"}
    assert len({seeded.block(30) for seeded in listed}) >= 20
    assert {seeded.edit for seeded in listed if seeded.tensor} == set(EDITS)
    seventeen = [seeded.at(seeded.block(30)) for seeded in listed if seeded.name == "ffn_down, row of zeros"]
    assert seventeen == [("ffn_down, row of zeros", "ffn_out-17", "blk.17.ffn_down.weight")]
    once = Counter(seeded.at(seeded.block(30))[0] for seeded in listed)
    assert set(once.values()) == {1}


def test_the_first_op_over_its_limit_is_what_is_named() -> None:
    found = trial("ffn_out-1", error("attn_norm-1", 1e-7), error("ffn_out-1", 1e-3), error("l_out-1", 1e-3))
    assert (found.named, found.op, found.position, found.channel, found.n_over) == ("ffn_out-1", "MUL_MAT", 7, 2, 2)
    assert found.nmse == pytest.approx(2.5e-7, rel=1e-3)
    assert found.is_op
    assert found.is_layer


@pytest.mark.parametrize(
    ("named", "is_layer"), [("ffn_up-1", True), ("ffn_out-2", False), ("result_norm", False), ("", False)]
)
def test_a_neighbour_is_not_the_op(named: str, is_layer: bool) -> None:
    found = trial("ffn_out-1", *([error(named, 1e-3)] if named else []))
    assert found.named == named
    assert not found.is_op
    assert found.is_layer is is_layer


def test_ops_outside_of_layers_stand_for_themselves() -> None:
    assert trial("embd", error("embd", 1e-3)).is_layer
    assert not trial("embd", error("result_norm", 1e-3)).is_layer


def test_every_layer_and_nineteen_of_twenty_ops_make_a_good_table() -> None:
    right, near, far = (trial("ffn_out-1", error(site, 1e-3)) for site in ("ffn_out-1", "ffn_up-1", "ffn_out-2"))
    assert table(*[right] * 20).is_good
    assert table(*[right] * 19, near).is_good
    assert not table(*[right] * 18, near, near).is_good
    assert not table(*[right] * 99, far).is_good
    assert not table().is_good
    assert encode(table(right, near))["trials"][1]["named"] == "ffn_up-1"
    assert share_of(()) == float("inf")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('schema = "parity/op_faults/1"\nfault = []\n', "no faults"),
        ('schema = "parity/op_faults/2"\nfault = []\n', "another version"),
        ('schema = "parity/op_faults/1"\n[[fault]]\nname = "a"\nwhat = "b"\nsite = "c"\ndepth = 1.0\n', "outside"),
        ('schema = "parity/op_faults/1"\n[[fault]]\nname = "a"\nwhat = "b"\nsite = "c"\ntensor = "t"\n', "edit"),
        ('schema = "parity/op_faults/1"\n[[fault]]\nname = "a"\nwhat = "b"\nsite = "c"\nedit = "code"\n', "edit"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "list.toml"
    path.write_text(text)
    with pytest.raises(FixtureError, match=words):
        load_op_faults(path)


def test_a_block_lies_in_the_model() -> None:
    last = replace(load_op_faults()[0], depth=0.99)
    assert [last.block(n) for n in (1, 4, 30)] == [0, 3, 29]
