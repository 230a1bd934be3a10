"""Builds of other stacks in a real cell: poisoned is red, a missing build INCOMPLETE, others compared bit by bit.

Poisoned is built here if this machine has not built it yet: half a minute where the default extension was built before.
Stacks of other sources run if they were built; else the test checks the reason that is given.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import EngineError
from parity_lib.base.names import Outcome, Rung
from parity_lib.cell import reference_cache
from parity_lib.cell.steps import CellRequest, run_cell
from parity_lib.cli.app import main
from parity_lib.engines import machine, sites, targets
from parity_lib.engines.burn import stacks
from parity_lib.engines.burn.build_info import CRATES_IO
from parity_lib.engines.worker.client import Worker
from parity_lib.fork.build import build
from parity_lib.fork.patch import POISON_BIT
from parity_lib.numerics.ggml_activations import round_bf16
from parity_lib.records import store
from parity_lib.records.pins import load_pins
from parity_lib.records.runs import burn
from parity_lib.records.traces import F32
from tests.shared import SoundCell, link_tree

pytestmark = pytest.mark.slow

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
MODEL = ("synthetic-llama", "Q8_0")
TILE_STACK = "spine-amx"


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory, sound_cell: SoundCell) -> Path:
    """A cache of references for this module, filled by a sound cell."""
    return link_tree(sound_cell.traces, tmp_path_factory.mktemp("traces"))


@pytest.fixture(autouse=True)
def own_cache(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_cache, "traces_dir", lambda: traces)


def cell(folder: Path, stack: str) -> CellRequest:
    model, quant = MODEL
    return CellRequest(model, quant, stack=stack, prompts=str(PROMPTS), out_dir=folder, n_threads=1)


def multiplied(stack: str) -> F32:
    weights, rows = np.random.default_rng(3).standard_normal((2, 32, 64)).astype("<f4")
    with Worker("parity_lib.fork.probe:StackProbe", {"stack": stack}) as probe:
        product: F32 = probe.call("linear", weights, rows)
    return product


def test_a_wrong_low_bit_below_burn_is_seen_by_t4_and_not_where_it_does_not_concern(tmp_path: Path) -> None:
    receipt = build("poisoned", "", lambda _: None)
    assert receipt.patched == {"burn-ndarray": "0.21.0"}
    turned = multiplied(CRATES_IO).view(np.uint32) ^ multiplied("poisoned").view(np.uint32)
    assert set(turned.flat) == {1 << POISON_BIT}
    verdict = run_cell(cell(tmp_path, "poisoned"))
    assert verdict.outcome is Outcome.DIVERGED
    found = {rung.rung: rung.outcome for rung in verdict.rungs}
    assert found[Rung.T4] is Outcome.DIVERGED
    # T3 sees it too; files, tokens, the native path's spread, the candidate itself and its instructions do not.
    untouched = (Rung.T0, Rung.T2, Rung.T5, Rung.T6)
    assert [found[rung] for rung in untouched] == [Outcome.PARITY] * len(untouched)
    assert found[Rung.T7] is not Outcome.DIVERGED
    assert all("stack=poisoned" in line for line in verdict.lines())
    assert burn(verdict.runs["candidate"]).build.receipt == receipt


def test_a_cell_on_a_stack_that_is_not_built_is_incomplete_and_no_other_burn_runs(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = cell(tmp_path / "cell", "spine")
    pins = load_pins()
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path))  # the worker looks there; the model is made again
    monkeypatch.setattr(stacks, "stacks_dir", lambda: tmp_path / "stacks")
    verdict = run_cell(request)
    assert verdict.outcome is Outcome.INCOMPLETE
    assert "the stack is not built" in verdict.causes[0]
    assert f"next: {stacks.how(pins.stack('spine'))}" in verdict.causes[0]
    assert {rung.rung for rung in verdict.rungs if rung.outcome is Outcome.PARITY} <= {Rung.T0, Rung.T1}
    assert "candidate" not in verdict.runs


def test_a_stack_of_tiles_multiplies_on_tiles_or_refuses_and_takes_no_fallback() -> None:
    if not stacks.folder(load_pins().stack(TILE_STACK)).is_dir():
        with pytest.raises(EngineError, match="the stack is not built"):
            multiplied(TILE_STACK)
        return
    random = np.random.default_rng(3)
    weights, rows = (random.standard_normal((n, 70)).astype("<f4") for n in (35, 19))  # no whole tile of any of them
    with Worker("parity_lib.fork.probe:StackProbe", {"stack": TILE_STACK}) as probe:
        by_name: F32 = probe.call("tile_products", weights, rows)
        if machine.missing_flags(targets.TILES):
            with pytest.raises(EngineError, match=r"multiplies on AMX tiles and has no other path.*found AMX: TILE="):
                probe.call("linear", weights, rows, "bf16")
        else:
            assert np.array_equal(probe.call("linear", weights, rows, "bf16"), by_name)
        plain: F32 = probe.call("linear", weights, rows)
    exact = round_bf16(rows).astype(np.float64) @ round_bf16(weights).astype(np.float64).T
    assert np.abs(by_name - exact).max() < 1e-5 * np.abs(exact).max()
    assert np.abs(plain - exact).max() > 1e-3 * np.abs(exact).max()  # what f32 gives is another product


@pytest.mark.parametrize("stack", ["avx2", "spine", "simd", "overlay", "flex"])
def test_bits_against_crates_io_where_the_stack_is_built(stack: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["stack", "compare", CRATES_IO, stack, *MODEL, "--prompts", str(PROMPTS), "--threads", "1"]
    status = main(command)
    said = capsys.readouterr()
    pin = load_pins().stack(stack)
    if not stacks.folder(pin).is_dir():
        assert status == 3
        assert f"stack {stack}: the stack is not built" in said.err
        assert f"next: {stacks.how(pin)}" in said.err
        return
    differs = stack in ("overlay", "flex")
    assert status == int(differs)
    line = said.out.splitlines()[-1]
    equal = "all bits equal, 20 positions x 2,048 logits"
    assert (equal in line) != differs
    if differs:  # another exp, or another matmul: how far off is what T3 and T4 judge
        assert "differ in bits" in line
        assert "; first at prompt " in line


def test_the_installed_burn_is_right_op_by_op_and_there_is_nothing_to_replace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["stack", "ops", CRATES_IO]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("crates-io: no op wrong")
    assert all(line.startswith("ok ") for line in said[:-1])
    assert {line.split()[1] for line in said[:-1]} == {"soft_max", "swiglu", "rms_norm"}
    assert main(["stack", "diagnose", CRATES_IO, *MODEL, "--prompts", str(PROMPTS), "--threads", "1"]) == 0
    said_last = capsys.readouterr().out.splitlines()[-1]
    assert "0 kinds of them wrong" in said_last
    assert " 158 ops on llama.cpp's own inputs" in said_last


def test_flex_is_right_op_by_op_and_its_decode_is_not_its_prefill_where_it_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["stack", "ops", "flex"])
    said = capsys.readouterr().out.splitlines()
    if not stacks.folder(load_pins().stack("flex")).is_dir():
        assert status == 3
        assert said[0].startswith("flex: NOT_RUN: ")
        return
    assert status == 0
    assert said[-1].startswith("flex: no op wrong")
    verdict = run_cell(cell(tmp_path, "flex"))
    found = {rung.rung: rung.outcome for rung in verdict.rungs}
    assert found.pop(Rung.T6) is Outcome.DIVERGED
    assert {found[rung] for rung in (Rung.T0, Rung.T2, Rung.T3, Rung.T4, Rung.T5)} == {Outcome.PARITY}
    assert found[Rung.T7] is not Outcome.DIVERGED
    assert {bad.where for bad in verdict.divergences} == {"decode", "restored"}


def test_a_wrong_product_is_named_with_its_layer(capsys: pytest.CaptureFixture[str]) -> None:
    build("poisoned", "", lambda _: None)
    command = ["stack", "diagnose", "poisoned", *MODEL, "--prompts", str(PROMPTS), "--threads", "1"]
    assert main([*command, "--ops-only"]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WRONG")]
    assert "first Qcur.MUL_MAT-0 in prefill" in wrong[0]
    assert all("(MUL_MAT)" in line or "(CONT)" in line for line in wrong)
    assert any(line.startswith("WRONG result_output") for line in wrong)


def test_replaced_ops_stand_in_the_run_and_an_unknown_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["stack", "compare", CRATES_IO, CRATES_IO, *MODEL, "--prompts", str(PROMPTS), "--threads", "1"]
    assert main(command) == 0
    assert "all bits equal" in capsys.readouterr().out
    assert main([*command, "--plain", "rms_norm,soft_max"]) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert "crates-io against crates-io with plain rms_norm, soft_max on" in line
    assert "top-1 equal at 20 positions" in line
    assert main([*command, "--plain", "exp"]) == 3
    assert 'expected soft_max, rms_norm, swiglu, add; found "exp"' in capsys.readouterr().err
    assert main(["stack", "compare", CRATES_IO, CRATES_IO]) == 2
    assert "give MODEL QUANT, or --plan PLAN" in capsys.readouterr().err


@pytest.mark.parametrize(("stack", "wrong"), [("simd", "rms_norm"), ("overlay", "rms_norm, soft_max, swiglu")])
def test_ops_that_are_known_to_be_wrong_are_named_where_the_stack_is_built(
    stack: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["stack", "ops", stack])
    said = capsys.readouterr().out.splitlines()
    if not stacks.folder(load_pins().stack(stack)).is_dir():
        assert status == 3
        assert said[0].startswith(f"{stack}: NOT_RUN: ")
        return
    assert status == 1
    assert said[-1].startswith(f"{stack}: {wrong} wrong")
    assert {line.split()[1] for line in said if line.startswith("WRONG")} == set(wrong.split(", "))
    assert all("bits depend on the place" in line for line in said if line.startswith("WRONG rms_norm"))


def test_the_fork_s_own_reader_and_tiles_are_judged_where_they_can_be_called(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = main(["stack", "reader", "synthetic-types", "MIXED"])
    said = capsys.readouterr()
    if not stacks.folder(load_pins().stack("spine")).is_dir():
        assert status == 3
        assert "stack spine: the stack is not built" in said.err
        return
    assert status == 1
    states = {line.split()[1]: line.split()[0] for line in said.out.splitlines()}
    right = dict.fromkeys(("F32", "F16", "BF16", "Q8_0"), "ok")
    wrong = dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"), "WRONG")
    assert states == right | wrong
    refused = {line.split()[1] for line in said.out.splitlines() if "Unsupported dtype" in line}
    assert refused == set(wrong) - {"Q4_0", "Q4_K"}
    status = main(["stack", "tiles", *MODEL, "--prompts", str(PROMPTS), "--threads", "1"])
    said = capsys.readouterr()
    assert "nearest even: 0 of 58 products over their limit" in said.out
    used = "AMX did not run" not in said.out
    assert status == (0 if used else 3)
    assert used or machine.missing_flags(("amx_tile",)) or "available=false" in said.out


def test_a_stack_without_the_fork_cannot_call_it() -> None:
    with (
        Worker("parity_lib.fork.reader:ForkReader", {"stack": CRATES_IO}) as reader,
        pytest.raises(EngineError, match="cannot call the fork's reader by name"),
    ):
        reader.call("tensor", Path("any.gguf"), "any")


def test_burns_modules_are_right_op_by_op_and_their_decode_is_not_their_prefill_where_they_are_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """T3 and T4 hold; ``module::attention`` sums softmax over other numbers of keys, so T6 does not."""
    status = main(
        [
            "run",
            *MODEL,
            "--implementation",
            "modules",
            "--prompts",
            str(PROMPTS),
            "--threads",
            "1",
            "--out",
            str(tmp_path),
        ]
    )
    verdict = store.load_verdict(tmp_path / "verdict.json")
    assert verdict.cell.stack == "modules"
    if not stacks.folder(load_pins().stack("modules")).is_dir():
        assert status == 3
        assert "stack modules: the stack is not built" in capsys.readouterr().out
        return
    assert status == 1
    rungs = {rung.rung: rung for rung in verdict.rungs}
    assert rungs[Rung.T6].outcome is Outcome.DIVERGED
    assert {found.where for found in verdict.divergences} == {"decode", "restored"}
    assert {rungs[rung].outcome for rung in (Rung.T0, Rung.T2, Rung.T3, Rung.T4, Rung.T5)} == {Outcome.PARITY}
    n_sites = len(sites.expected(4, (), sites.fused("modules", "ggml")))
    assert rungs[Rung.T3].compared == rungs[Rung.T3].expected
    assert divmod(rungs[Rung.T3].compared, n_sites) == (6, 0)  # a prefill and two decodes of both prompts


def test_a_fault_seeded_into_burns_modules_is_caught_where_they_are_built(
    tmp_path: Path,
) -> None:
    pin = load_pins().stack("modules")
    verdict = run_cell(replace(cell(tmp_path, "modules"), fault="softmax_scale"))
    broken = {rung.rung for rung in verdict.rungs if rung.outcome is Outcome.DIVERGED}
    if stacks.folder(pin, faults=True).is_dir():
        assert {Rung.T3, Rung.T4} <= broken
        assert verdict.divergences[0].where == "kqv_out-0"
    else:
        assert verdict.outcome is Outcome.INCOMPLETE
        assert "parity stack build modules --faults" in " ".join(verdict.causes)
