"""The record of a self-spread: the same bits after a round trip, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from parity_lib.base.errors import RecordError, TraceMismatchError
from parity_lib.base.json_text import dump_line, encode
from parity_lib.base.names import Kind
from parity_lib.base.record import decode_record
from parity_lib.records.self_spread import (
    DEFAULT,
    DEFAULT_DECODE,
    FLASH_F16,
    OTHER_BUILD,
    STRICT,
    TWIN,
    VARIANTS,
    Displaced,
    SelfSpread,
    Variant,
    with_copies_marked,
)
from tests.run_info import variant_run

N = 7


def variant(name: str, against: str = STRICT, seed: int = 1, **changed: object) -> Variant:
    rng = np.random.default_rng(seed)
    arrays = {k: rng.random(N, np.float32) for k in ("rms", "std", "mean", "delta", "kl", "pair_sigma")}
    flags = {k: rng.random(N) < 0.5 for k in ("top1_equal", "top5_equal")}
    fields = {
        "name": name,
        "against": against,
        "asked": N,
        "same_as": "",
        "run": variant_run(name),
        "rows": np.arange(N, dtype="i4"),
    }
    return Variant(**(fields | arrays | flags | changed))  # type: ignore[arg-type]


def spread() -> SelfSpread:
    return SelfSpread(
        model_sha256="ab" * 32,
        prompts_sha256="cd" * 32,
        isa="avx512",
        machine_class="a-machine",
        commit="0c1e570-dirty",
        prompt_idx=np.zeros(N, np.int32),
        token_idx=np.arange(-2, N - 2, dtype=np.int32),
        variants=(variant(DEFAULT), variant(DEFAULT_DECODE, DEFAULT, 2)),
        absent={OTHER_BUILD: "none in the cache"},
        twin=variant(TWIN, seed=3, delta=np.array([np.nan, np.inf, 0, 1, 2, 3, 4], np.float32)),
        displaced=(Displaced(0, -1, Kind.TOP1), Displaced(0, 2, Kind.TOP5_SET)),
    )


def test_the_round_trip_gives_the_same_bits() -> None:
    first = spread()
    text = dump_line(first)
    second = decode_record(json.loads(text), SelfSpread, "here")
    assert dump_line(second) == text
    assert second.displaced == first.displaced
    assert second.twin.delta.tobytes() == first.twin.delta.tobytes()
    assert second.variants[0].run == first.variants[0].run
    assert second.variants[1].top5_equal.tolist() == first.variants[1].top5_equal.tolist()
    assert second.variant(DEFAULT_DECODE) is second.variants[1]
    assert second.variant(FLASH_F16) is None
    assert not second.twin.rms.flags.writeable


def test_a_record_is_small() -> None:
    n = 3500
    arrays = {k: np.ones(n, np.float32) for k in ("rms", "std", "mean", "delta", "kl", "pair_sigma")} | {
        k: np.ones(n, bool) for k in ("top1_equal", "top5_equal")
    }
    large = variant(DEFAULT, rows=np.arange(n, dtype=np.int32), asked=n, **arrays)
    assert len(dump_line({"v": [large.rms, large.kl]})) > 0
    whole = SelfSpread("", "", "", "", "", large.rows, large.rows, (large,) * 3, {}, large)
    assert len(dump_line(whole)) < 700_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "parity/spread/0"}, "another schema; expected parity/spread/1; found parity/spread/0"),
        ({"prompt_idx": "not base64!"}, r"at \$.prompt_idx: is no SelfSpread; expected an array"),
        ({"prompt_idx": "AAA="}, "expected an array"),
        ({"more": 1}, "unknown field `more`"),
    ],
)
def test_another_record_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(RecordError, match=words):
        decode_record(encode(spread()) | change, SelfSpread, "here")


def test_a_variant_with_an_unknown_or_missing_field_is_refused() -> None:
    data = encode(spread())
    del data["twin"]["rms"]
    with pytest.raises(RecordError, match=r"at \$.twin: is no SelfSpread.*missing required field `rms`"):
        decode_record(data, SelfSpread, "here")


def test_arrays_of_another_length_are_refused() -> None:
    with pytest.raises(TraceMismatchError, match="kl"):
        variant(DEFAULT, kl=np.ones(N + 1, np.float32))


def test_a_copy_is_counted_once() -> None:
    each = (variant(DEFAULT), variant(FLASH_F16), variant(DEFAULT_DECODE, DEFAULT, 2))
    marked = with_copies_marked(each, {DEFAULT: b"a", FLASH_F16: b"a", DEFAULT_DECODE: b"a"})
    assert [v.same_as for v in marked] == ["", DEFAULT, ""]  # decode is compared with something else
    marked = with_copies_marked(each, {DEFAULT: b"a", FLASH_F16: b"b", DEFAULT_DECODE: b"c"})
    assert [v.same_as for v in marked] == ["", "", ""]


def test_what_equals_what_it_is_compared_with_is_no_spread() -> None:
    none = variant(DEFAULT_DECODE, DEFAULT, rms=np.zeros(N, np.float32))
    marked = with_copies_marked((variant(DEFAULT), none), {DEFAULT: b"a", DEFAULT_DECODE: b"b"})
    assert [v.same_as for v in marked] == ["", DEFAULT]
    nan = variant(DEFAULT_DECODE, DEFAULT, rms=np.full(N, np.nan, np.float32))
    assert with_copies_marked((nan,), {DEFAULT_DECODE: b"b"})[0].same_as == ""


def test_the_other_build_is_told_and_not_pooled() -> None:
    each = (*spread().variants, variant(OTHER_BUILD, seed=5))
    found = SelfSpread("", "", "", "", "", np.zeros(N, "i4"), np.zeros(N, "i4"), each, {}, variant(TWIN))
    assert found.counted == (DEFAULT, DEFAULT_DECODE)
    assert OTHER_BUILD in VARIANTS
