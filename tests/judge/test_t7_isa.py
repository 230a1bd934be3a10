"""Rung T7 on evidence: what proves an ISA target, what contradicts it, what is too little; a polyfill is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from parity_lib.base.errors import RecordError
from parity_lib.base.json_text import encode
from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.base.record import decode_record
from parity_lib.judge.t7_isa import judge_isa, prove, side_word, words
from parity_lib.numerics.isa_samples import MIN_PRODUCTS, summarise, target_of
from parity_lib.records.isa_evidence import BURN, LLAMA_CPP, UNPROVEN, Buffer, Evidence, Kernel
from parity_lib.records.verdicts import conclude

RECORDED = Path(__file__).parents[1] / "fixtures" / "polyfill.json"
MEASURED = json.loads((Path(__file__).parents[1] / "fixtures" / "amx.json").read_text())  # on a machine that has AMX
FMA512 = Kernel("burn_gguf.abi3.so", "kernel_target_avx512", "_mm512_fmadd_ps", "vfmadd231ps", 512, ("AVX512F",), 1)
FMA256 = Kernel("burn_gguf.abi3.so", "kernel_target_fma", "_mm256_fmadd_ps", "vfmadd231ps", 256, ("FMA",), 1)
DOT = Kernel("libggml-cpu.so.0", "ggml_vec_dot_q8_0_q8_0", "", "vpdpbusd", 256, ("AVX512VL", "AVX512_VNNI"), 1)
LOAD = Kernel("libggml-cpu.so.0", "ggml_vec_dot_q8_0_q8_0", "", "vmovups", 256, ("AVX",), 1)
TILE = Kernel("libggml-cpu.so.0", "tinygemm_kernel_amx", "", "tdpbusd", 8192, ("AMX_INT8",), 1)
COPY = Kernel("libc.so.6", "__memmove_avx512", "", "vmovdqu64", 512, ("AVX512F",), 1)
MOVE = Kernel("burn_gguf.abi3.so", "pack", "", "mov", 64, ("X64",), 1)
AMX = Buffer("AMX", {"q8_0": 211}, 211, 142_884_864, 1)


def of_burn(requested: str, *kernels: tuple[Kernel, int], **facts: object) -> Evidence:
    places = [replace(kernel, n=n) for kernel, n in kernels]
    sampled = summarise(sum(p.n for p in places), 0, places, ("burn_gguf",))
    return Evidence(BURN, "teacher-forced pass", requested, sampled, **facts)  # type: ignore[arg-type]


def of_llama(requested: str, *kernels: tuple[Kernel, int], **facts: object) -> Evidence:
    places = [replace(kernel, n=n) for kernel, n in kernels]
    sampled = summarise(sum(p.n for p in places), 0, places, ("libggml", "libllama"))
    return Evidence(LLAMA_CPP, "strict settings", requested, sampled, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("features", "target"),
    [
        (["AVX512F"], "avx512"),
        (["AVX512VL", "AVX512_VNNI"], "avx512"),
        (["FMA"], "avx2"),
        (["AVX_VNNI"], "avx2"),
        (["AMX_INT8"], "amx"),
        (["ASIMD"], "neon"),
        (["SSE2"], "narrow"),
        (["X64"], None),
        (["BMI2"], None),
        ([], None),
    ],
)
def test_an_instruction_belongs_to_the_target_of_its_extension(features: list[str], target: str | None) -> None:
    assert target_of(features) == target


def test_only_the_engine_s_own_libraries_count() -> None:
    seen = of_burn("avx2", (FMA256, 30), (COPY, 500), (MOVE, 70)).sampled
    assert seen is not None
    assert (seen.n, seen.own, seen.vectors, seen.products) == (600, 100, {"avx2": 30}, {"avx2": 30})


@pytest.mark.parametrize(("target", "kernel"), [("avx512", FMA512), ("avx2", FMA256)])
def test_a_target_is_proved_by_its_own_multiply_adds(target: str, kernel: Kernel) -> None:
    proof = prove(of_burn(target, (kernel, 40), (MOVE, 10), arithmetic={"fma": "yes", "operands": "f32"}))
    assert (proof.proven, proof.observed, proof.contradicted) == (True, target, False)
    assert kernel.inlined in words(proof)


@pytest.mark.parametrize(
    ("evidence", "observed", "why"),
    [
        (of_burn("avx512", (FMA256, 40)), "avx2", "asked for avx512, saw avx2"),
        (of_burn("avx2", (FMA512, 40)), "avx512", "asked for avx2, saw avx512"),
        (of_burn("amx", (FMA512, 40), arithmetic={"operands": "f32"}), "avx512", "tiles have no f32"),
        (of_burn("avx512", (FMA512, 20), (FMA256, 20)), "avx2", "asked for avx512, saw avx2"),
        (of_burn("avx2", (FMA256, 99), (FMA512, 1)), "avx2", "instructions beyond avx2 ran too"),
        (of_burn("avx512", (FMA512, 40), arithmetic={"fma": "no"}), "avx512", "rounded before they are added"),
        (of_burn("avx512", (MOVE, 300), (FMA512, 1)), "narrow", "not seen, although"),
        (of_llama("amx", (DOT, 60), buffers=(AMX,)), "avx512", "asked for amx, saw avx512"),
        (of_llama("amx", (TILE, 60)), "amx", "no weight lies in the buffer AMX"),
        (of_llama("avx2", (LOAD, 97), (DOT, 3)), "avx2", "instructions beyond avx2 ran too"),
    ],
)
def test_what_was_seen_and_not_asked_for_is_refused(evidence: Evidence, observed: str, why: str) -> None:
    proof = prove(evidence)
    assert (proof.proven, proof.observed, proof.contradicted) == (False, observed, True)
    assert why in proof.reason
    rung, divergences = judge_isa([proof], expected=1, required=False)
    assert rung.outcome is Outcome.DIVERGED
    assert [(d.rung, d.kind, d.where) for d in divergences] == [(Rung.T7, Kind.ISA, evidence.engine)]


def test_the_reference_mixes_widths_and_tiles_need_their_buffer() -> None:
    assert prove(of_llama("avx512", (DOT, 12), (LOAD, 40))).proven
    assert prove(of_llama("amx", (TILE, 12), (DOT, 60), buffers=(AMX,))).proven
    assert prove(of_llama("avx2", (LOAD, 40))).proven


@pytest.mark.parametrize(
    "evidence",
    [
        of_burn("avx512", (FMA512, MIN_PRODUCTS - 1)),
        of_llama("avx512", (DOT, 5)),
        Evidence(BURN, "teacher-forced pass", "avx512", None, "no sampler"),
        of_burn("avx512"),
    ],
)
def test_too_few_samples_are_not_run_and_incomplete_where_required(evidence: Evidence) -> None:
    proof = prove(evidence)
    assert (proof.proven, proof.observed, proof.contradicted) == (False, UNPROVEN, False)
    outcomes = [judge_isa([proof], expected=1, required=required)[0] for required in (False, True)]
    assert [rung.outcome for rung in outcomes] == [Outcome.NOT_RUN, Outcome.INCOMPLETE]
    assert all(rung.note.startswith("unproven: ") for rung in outcomes)
    assert [len(conclude([rung], required=())[1]) for rung in outcomes] == [1, 1]


NO_TILES = "amx is not possible for burn here, which ran avx512: it has no kernel of tiles"


@pytest.mark.parametrize(
    ("required", "outcome", "n_divergences"), [(False, Outcome.REPORTED, 0), (True, Outcome.DIVERGED, 1)]
)
def test_a_candidate_that_has_no_such_kernel_is_reported_and_red_where_it_is_required(
    required: bool, outcome: Outcome, n_divergences: int
) -> None:
    burn = prove(of_burn("avx512", (FMA512, 40), impossible=NO_TILES))
    strict = prove(of_llama("avx512", (DOT, 60)))
    tiles = prove(of_llama("amx", (TILE, 12), (DOT, 60), buffers=(AMX,)))
    assert [side_word(proof) for proof in (burn, strict, tiles)] == ["not possible here", "proven", "proven"]
    rung, divergences = judge_isa([burn, strict, tiles], expected=3, required=required)
    assert (rung.outcome, rung.compared, len(divergences)) == (outcome, 3, n_divergences)
    assert rung.note.startswith(NO_TILES)
    assert all((d.where, d.note) == (BURN, NO_TILES) for d in divergences)
    twin = replace(rung, rung=Rung.T4, outcome=Outcome.PARITY)
    concluded, causes = conclude([twin, rung], required=(Rung.T4, Rung.T7))
    assert (concluded, causes) == (Outcome.DIVERGED if required else Outcome.PARITY, ())


@pytest.mark.parametrize("share", MEASURED["tiles"]["share_of_vector_samples"])
@pytest.mark.parametrize("weights", MEASURED["tiles"]["weights_in_the_buffer_amx"])
@pytest.mark.parametrize("mnemonic", MEASURED["tiles"]["instructions"])
def test_what_was_measured_on_amx_proves_the_reference_and_names_the_candidate(
    share: float, weights: int, mnemonic: str
) -> None:
    tile, n_tiles = replace(TILE, instruction=mnemonic, features=("AMX_TILE",)), round(100 * share)
    buffer = Buffer("AMX", {"q8_0": weights}, weights, weights << 16, 1)
    tiles = prove(of_llama("amx", (tile, n_tiles), (DOT, 100 - n_tiles), buffers=(buffer,)))
    [candidate] = {cell["t7"]["candidate"] for cell in MEASURED["cells"]}
    burn = prove(of_burn(candidate, (FMA512, 60), impossible=NO_TILES))
    strict = prove(of_llama("avx512", (DOT, 60)))
    rung, _ = judge_isa([burn, strict, tiles], expected=3, required=False)
    assert (tiles.observed, tiles.proven, rung.outcome) == ("amx", True, Outcome.REPORTED)
    assert rung.note.count("is not possible for burn") == 1
    assert f"AMX buffer {weights} weights" in rung.note


FORK_TILE = Kernel("burn_gguf.abi3.so", "burn_gguf::tile::multiply_band", "", "tdpbf16ps", 8192, ("AMX_BF16",), 1)
FALLEN = replace(FMA512, function="ndarray::hpc::bf16_tile_gemm::fallback_path")


def test_a_stack_of_tiles_is_proven_beside_the_f32_products_of_its_attention() -> None:
    proof = prove(of_burn("amx", (FORK_TILE, 30), (FMA512, 20), (MOVE, 200), arithmetic={"operands": "bf16"}))
    assert (proof.observed, proof.proven) == ("amx", True)
    assert "60% amx, 40% avx512" in proof.reason


@pytest.mark.parametrize(
    ("kernels", "operands", "said"),
    [
        ([(FALLEN, 50)], "bf16", "asked for amx, saw avx512"),
        ([(FORK_TILE, 30), (FALLEN, 20)], "bf16", "its tile product ran without tiles too: 20 samples in"),
        ([(FORK_TILE, 30), (FMA512, 20)], "f32", "its operands are f32, and tiles have no f32"),
    ],
)
def test_a_stack_of_tiles_that_fell_back_is_contradicted(
    kernels: list[tuple[Kernel, int]], operands: str, said: str
) -> None:
    proof = prove(of_burn("amx", *kernels, arithmetic={"operands": operands}))
    assert proof.contradicted
    assert said in proof.reason
    assert judge_isa([proof], expected=1, required=True)[0].outcome is Outcome.DIVERGED


def test_a_reference_that_has_no_such_build_here_accuses_nobody() -> None:
    burn = prove(of_burn("avx512", (FMA512, 40)))
    llama = prove(of_llama("avx2", (LOAD, 60), impossible="avx512 is not possible for llama.cpp here"))
    outcomes = [judge_isa([burn, llama], expected=2, required=required) for required in (False, True)]
    assert [rung.outcome for rung, _ in outcomes] == [Outcome.REPORTED, Outcome.INCOMPLETE]
    assert [divergences for _, divergences in outcomes] == [[], []]


def test_what_was_run_instead_has_to_be_shown_too() -> None:
    """A side that cannot run the cell's target is asked for its own widest, and may fail that."""
    slow = prove(of_burn("avx512", (FMA256, 40), impossible=NO_TILES))
    assert side_word(slow) == "other instructions"
    rung, [divergence] = judge_isa([slow], expected=1, required=True)
    assert (rung.outcome, divergence.note) == (Outcome.DIVERGED, f"{slow.evidence.run}: {slow.reason}")
    unseen = prove(of_burn("avx512", impossible=NO_TILES))
    assert judge_isa([unseen], expected=1, required=False)[0].outcome is Outcome.NOT_RUN


def test_a_missing_proof_is_not_run() -> None:
    proof = prove(of_burn("avx512", (FMA512, 40)))
    rung, divergences = judge_isa([proof], expected=2, required=False)
    assert (rung.outcome, rung.compared, rung.expected, divergences) == (Outcome.NOT_RUN, 1, 2, [])
    assert "1 proofs are missing" in rung.note
    assert judge_isa([], expected=0, required=True)[0].outcome is Outcome.INCOMPLETE


def test_a_rung_that_is_not_run_leaves_the_others_their_outcome() -> None:
    good = judge_isa([prove(of_burn("avx512", (FMA512, 40)))], expected=1, required=False)[0]
    not_run = judge_isa([prove(of_burn("avx512"))], expected=1, required=False)[0]
    twin = replace(good, rung=Rung.T4)
    assert conclude([twin, not_run], required=(Rung.T4, Rung.T7)) == (Outcome.PARITY, ())
    assert conclude([twin], required=(Rung.T4, Rung.T7))[0] is Outcome.INCOMPLETE


def test_a_recorded_polyfill_is_refused() -> None:
    """Recorded on a machine without AMX: both engines asked for AMX, and what ran beneath was AVX-512."""
    recorded = [decode_record(entry, Evidence, RECORDED) for entry in json.loads(RECORDED.read_text())["evidence"]]
    assert [(e.engine, e.requested) for e in recorded] == [(BURN, "amx"), (BURN, "amx"), (LLAMA_CPP, "amx")]
    rung, divergences = judge_isa([prove(e) for e in recorded], expected=3, required=False)
    assert (rung.outcome, len(divergences)) == (Outcome.DIVERGED, 3)
    assert all("asked for amx, saw avx512" in d.note for d in divergences)
    for evidence in recorded:  # the same record under its right name is a proof
        assert prove(replace(evidence, requested="avx512")).proven


def test_evidence_survives_its_record() -> None:
    evidence = of_llama("amx", (TILE, 12), (DOT, 60), buffers=(AMX,), features={"AMX_INT8": 1})
    assert decode_record(json.loads(json.dumps(encode(evidence))), Evidence, "here") == evidence
    with pytest.raises(RecordError, match=r"is no Evidence.*missing required field `run`"):
        decode_record({"engine": "burn"}, Evidence, "here")
