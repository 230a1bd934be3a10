"""A decoded row beside the same row of a prefill: equal to the bit at every site, and named where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import EngineError
from parity_lib.engines import sites
from parity_lib.engines.burn.self_check import FILLED, TOGETHER, BurnSelf
from parity_lib.engines.worker.client import Worker
from parity_lib.model_file.facts import read_facts
from parity_lib.models.synthetic import Shape, build

pytestmark = pytest.mark.engine

TOKENS = [(i * 37) % 501 + 1 for i in range(FILLED + TOGETHER + 2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return build("qwen2", "Q4_K_M", folder / "model.gguf", Shape(n_layer=2, n_vocab=512))


@pytest.mark.parametrize("row", [0, 1, 25], ids=["first", "second", "last"])
@pytest.mark.parametrize("compute", ["f32", "ggml"])
def test_a_sound_candidate_never_parts(compute: str, row: int, model: Path, target: str) -> None:
    found = BurnSelf(model, target, compute=compute, n_threads=1).part(TOKENS[:26], row)
    assert found.sites == tuple(sites.expected(2, read_facts(model).biases))
    assert found.parted == ()
    assert found.size == 0


def test_the_first_site_that_parts_is_named(model: Path, target: str) -> None:
    """Row 0 of a pass is fed another token: the decode has a row 0 where the prefill has a row 9."""
    asked = {"path": str(model), "isa": target, "n_threads": 1, "fault": "token_off=0"}
    with Worker("burn_self", asked) as engine:
        found = engine.call("part", TOKENS[:20], 9)
    assert found.parted[0] == "embd"
    assert found.size > 0.1
    assert "result_output" in found.parted


class Off(BurnSelf):
    """A candidate whose decode puts another bit into one site: the lowest of its last value."""

    def _new_session(self, n_sequences: int) -> object:
        session = super()._new_session(n_sequences)

        class Session:
            def append(self, rows: list[tuple[int, int]], **named: object) -> object:
                see = named.get("observe")

                def observe(site: str, shape: list[int], raw: bytes) -> bytes | None:
                    if site == "kq_soft_max-1" and len(rows) == 1:
                        values = np.frombuffer(raw, "<u4").copy().reshape(shape)
                        values[:, 0] ^= 1  # every row sees the first key
                        raw = values.tobytes()
                    see(site, shape, raw)
                    return raw

                return session.append(rows, **(named | ({"observe": observe} if see else {})))

        return Session()


@pytest.mark.parametrize(
    ("n", "row"),
    [
        (2, 0),
        (20, 19),
        (TOGETHER + 1, TOGETHER),
        (FILLED + 1, FILLED),
        (FILLED + TOGETHER + 1, FILLED + TOGETHER),
        (FILLED + TOGETHER + 2, FILLED - 1),
    ],
)
def test_a_bit_is_found_wherever_the_row_stands(n: int, row: int, model: Path, target: str) -> None:
    sound = BurnSelf(model, target, n_threads=2).part(TOKENS[:n], row)
    assert sound.sites == tuple(sites.expected(2, read_facts(model).biases))
    assert sound.parted == ()
    found = Off(model, target, n_threads=2).part(TOKENS[:n], row)
    assert found.parted[0] == "kq_soft_max-1"
    assert 0 < found.size < 1e-6


def test_a_sequence_of_one_row_says_that_nothing_was_compared(model: Path, target: str) -> None:
    assert BurnSelf(model, target, n_threads=1).part(TOKENS[:1], 0).sites == ()


def test_a_row_that_is_not_there_is_an_error(model: Path, target: str) -> None:
    with pytest.raises(EngineError, match="there is no such row; expected 0 to 4; found 5"):
        BurnSelf(model, target, n_threads=1).part(TOKENS[:5], 5)
