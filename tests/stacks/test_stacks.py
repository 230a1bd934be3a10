"""Builds of other stacks under a real cell: poisoned is red, a hole is INCOMPLETE, what is built is bit-equal or not.

Poisoned is built here if this machine has not built it yet: half a minute where the default extension was built before.
The stacks with other sources run where somebody built them; where nobody did, the test holds the hole to its words.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity_lib.capture import reference_cache
from parity_lib.capture.cell import CellRequest, run_cell
from parity_lib.cli import main
from parity_lib.engines import stack_store
from parity_lib.engines.burn_build import CRATES_IO
from parity_lib.engines.worker import Worker
from parity_lib.names import Outcome, Rung
from parity_lib.pins import load_pins
from parity_lib.stacks.build import build
from parity_lib.stacks.patch import POISON_BIT
from parity_lib.traces import F32

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
MODEL = ("synthetic-llama", "Q8_0")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of references for this module."""
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(autouse=True)
def own_cache(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_cache, "traces_dir", lambda: traces)


def cell(folder: Path, stack: str) -> CellRequest:
    model, quant = MODEL
    return CellRequest(model, quant, stack=stack, prompts=str(PROMPTS), out_dir=folder, n_threads=1)


def multiplied(stack: str) -> F32:
    weights, rows = np.random.default_rng(3).standard_normal((2, 32, 64)).astype("<f4")
    with Worker("parity_lib.engines.stack_probe:StackProbe", {"stack": stack}) as probe:
        product: F32 = probe.call("linear", weights, rows)
    return product


def test_a_wrong_low_bit_below_burn_is_seen_by_t4_and_by_nothing_that_it_does_not_concern(tmp_path: Path) -> None:
    receipt = build("poisoned", "", lambda _: None)
    assert receipt.patched == {"burn-ndarray": "0.21.0"}
    turned = multiplied(CRATES_IO).view(np.uint32) ^ multiplied("poisoned").view(np.uint32)
    assert set(turned.flat) == {1 << POISON_BIT}
    verdict = run_cell(cell(tmp_path, "poisoned"))
    assert verdict.outcome is Outcome.DIVERGED
    found = {rung.rung: rung.outcome for rung in verdict.rungs}
    assert found[Rung.T4] is Outcome.DIVERGED
    assert {rung for rung, outcome in found.items() if outcome is not Outcome.PARITY} <= {Rung.T3, Rung.T4}
    assert all("stack=poisoned" in line for line in verdict.lines())
    assert verdict.runs["candidate"].build["receipt"]["library_sha256"] == receipt.library_sha256


def test_a_cell_on_a_stack_that_is_not_built_is_incomplete_and_no_other_burn_runs(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = cell(tmp_path / "cell", "spine")
    pins = load_pins()
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path))  # the worker looks there; the model is made again
    monkeypatch.setattr(stack_store, "stacks_dir", lambda: tmp_path / "stacks")
    verdict = run_cell(request)
    assert verdict.outcome is Outcome.INCOMPLETE
    [cause] = verdict.causes
    assert "the stack is not built" in cause
    assert f"next: {stack_store.how(pins.stack('spine'))}" in cause
    assert not verdict.rungs
    assert not verdict.runs


@pytest.mark.parametrize("stack", ["avx2", "spine", "overlay"])
def test_bits_against_crates_io_where_the_stack_is_built(stack: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["stack", "compare", CRATES_IO, stack, *MODEL, "--prompts", str(PROMPTS), "--threads", "1"]
    status = main(command)
    said = capsys.readouterr()
    pin = load_pins().stack(stack)
    if not stack_store.folder(pin).is_dir():
        assert status == 3
        assert f"stack {stack}: the stack is not built" in said.err
        assert f"next: {stack_store.how(pin)}" in said.err
        return
    assert status == (1 if stack == "overlay" else 0)
    line = said.out.splitlines()[-1]
    equal = "all bits equal, 20 positions x 2,048 logits"
    assert (equal in line) == (stack != "overlay")
    if stack == "overlay":  # its polynomial exp is another function; how far off is what T3 and T4 judge
        assert "differ in bits" in line
        assert "first at prompt 0" in line
