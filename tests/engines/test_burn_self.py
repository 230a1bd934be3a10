"""A decoded row beside the same row of a prefill: equal to the bit at every site, and named where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_lib.capture.synthetic import Shape, build
from parity_lib.engines import sites
from parity_lib.engines.burn_self import MAX_INNER, BurnSelf
from parity_lib.errors import EngineError

TOKENS = [(i * 37) % 501 + 1 for i in range(MAX_INNER + 20)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return build("qwen2", "Q4_K_M", folder / "model.gguf", Shape(n_layer=2, n_vocab=512))


@pytest.mark.parametrize("row", [0, 1, 25], ids=["first", "second", "last"])
@pytest.mark.parametrize("compute", ["f32", "ggml"])
def test_a_sound_candidate_never_parts(compute: str, row: int, model: Path, leg: str) -> None:
    found = BurnSelf(model, leg, compute=compute, n_threads=1).part(TOKENS[:26], row)
    assert found.sites == tuple(sites.expected(2, biases=True))
    assert found.parted == ()
    assert found.size == 0


def test_the_first_site_that_parts_is_named(model: Path, leg: str) -> None:
    """Row 0 of a pass is fed another token: the decode has a row 0 where the prefill has a row 9."""
    found = BurnSelf(model, leg, n_threads=1, fault="token_off=0").part(TOKENS[:20], 9)
    assert found.parted[0] == "embd"
    assert found.size > 0.1
    assert "result_output" in found.parted
    assert len(found.parted) <= len(found.sites)


def test_a_long_sequence_is_compared_without_the_inside_of_attention(model: Path, leg: str) -> None:
    found = BurnSelf(model, leg, n_threads=2).part(TOKENS, MAX_INNER + 3)
    assert found.parted == ()
    assert "kqv_out-1" in found.sites
    assert not [site for site in found.sites if sites.table(site).inner]


def test_a_row_that_is_not_there_is_an_error(model: Path, leg: str) -> None:
    with pytest.raises(EngineError, match="there is no such row; expected 0 to 4; found 5"):
        BurnSelf(model, leg, n_threads=1).part(TOKENS[:5], 5)
