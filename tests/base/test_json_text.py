"""JSON text: the same record gives the same bytes, and NaN and infinity survive the way to disk and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from parity_lib.base.errors import RecordError
from parity_lib.base.json_text import decode, dump_line, dump_page, encode, parse
from parity_lib.base.names import Rung


@dataclass
class Thing:
    rung: Rung
    values: tuple[float, ...]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
def test_non_finite_numbers_survive(value: float, kind: Any) -> None:
    data = encode({"a": [kind(value)]})
    assert data == {"a": [{"nonfinite": str(value)}]}
    back = decode(parse(dump_line(data), "here"))["a"][0]
    assert back == value or (math.isnan(back) and math.isnan(value))


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": ', ""])
def test_a_bare_nan_and_broken_text_are_refused(text: str) -> None:
    with pytest.raises(RecordError, match="here: is not valid JSON"):
        parse(text, "here")


def test_an_unknown_non_finite_word_is_refused() -> None:
    with pytest.raises(RecordError, match="huge"):
        decode({"nonfinite": "huge"})


def test_text_is_sorted_whole_and_in_one_line() -> None:
    text = dump_line({"b": "naïve\n你", "a": {"d": 1, "c": 2.5}})
    assert text == '{"a":{"c":2.5,"d":1},"b":"naïve\\n你"}'
    assert dump_line({"a": {"c": 2.5, "d": 1}, "b": "naïve\n你"}) == text
    assert dump_page({"b": 1, "a": 2}).splitlines() == ["{", ' "a": 2,', ' "b": 1', "}"]


def test_records_arrays_and_numpy_numbers_become_plain_json() -> None:
    assert encode(Thing(Rung.T4, (1.0, math.nan))) == {"rung": "T4", "values": [1.0, {"nonfinite": "nan"}]}
    assert json.dumps(encode([np.int32(3), np.bool_(True), np.arange(2), np.float32(0.5)])) == "[3, true, [0, 1], 0.5]"
    assert type(encode(np.float64(0.25))) is float
    assert type(encode(Rung.T4)) is str


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, {1, 2}, b"x"])
def test_what_no_record_holds_is_refused(value: object) -> None:
    with pytest.raises(RecordError):
        encode(value)


def test_every_float_comes_back_to_the_bit() -> None:
    values = np.random.default_rng(1).integers(0, 2**63, 500).view(np.float64)
    values = values[np.isfinite(values)]
    assert json.loads(dump_line(values)) == values.tolist()
