"""A build of llama.cpp is tried when it is made: a real one, and children that die of real machine code."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from msgspec.structs import replace

from parity_lib.base.errors import EngineError, PinError
from parity_lib.engines import machine
from parity_lib.engines.llamacpp import isa_build
from parity_lib.engines.llamacpp.isa_build import installed_folder, target_folder, try_wheel
from parity_lib.engines.llamacpp.probe import check_accepted, probe, refuse
from parity_lib.engines.llamacpp.receipt import FILE_NAME, read_receipt
from parity_lib.engines.worker.fatal import disassemble, read_fatal
from parity_lib.records.builds import Receipt
from parity_lib.records.pins import load_pins
from tests.engines.llamacpp import dying

pytestmark = pytest.mark.engine
X86 = platform.machine() == "x86_64"
DEATHS = [(dying.Aborts, r"killed by SIGABRT; likely cause: not known")]
if X86:  # the others are x86 machine code
    DEATHS += [
        (dying.Undefined, r"SIGILL at `ud2` in no library\+0x0; likely cause: .*this CPU does not have"),
        (dying.Tiles, r"SIGILL at `tileloadd \(%rcx,%rbx,1\),%tmm0` .*cause: .*drops the stores of `_tile_loadconfig`"),
        (dying.Null, r"SIGSEGV at `mov \(%rax\),%rax` .*cause: .*memory that is not its own"),
    ]


@pytest.fixture(scope="module")
def receipt() -> Receipt:
    return read_receipt(installed_folder() / FILE_NAME)


def engine(kind: type) -> str:
    return f"{kind.__module__}:{kind.__name__}"


def test_the_installed_build_multiplies_by_every_type_in_every_order(receipt: Receipt) -> None:
    assert probe(receipt) >= 2 * 9  # nine types and more, one row and many


@pytest.mark.parametrize(("kind", "words"), DEATHS)
def test_a_build_that_dies_is_refused_with_signal_instruction_and_cause(
    receipt: Receipt, kind: type, words: str
) -> None:
    place = "F32" if kind is dying.Aborts else "Q8_0"
    with pytest.raises(
        EngineError, match=rf"at a product of 1 rows with {place}: the build of llama\.cpp dies"
    ) as told:
        probe(receipt, engine=engine(kind))
    assert told.match(words)


def test_a_build_that_multiplies_wrongly_is_refused(receipt: Receipt) -> None:
    place = "33 rows with Q4_K in the buffer CPU_REPACK" if X86 else "rows with"  # no buffer is tried on ARM
    with pytest.raises(EngineError, match=rf"multiplies wrongly.*{place}.*: NMSE nan"):
        probe(receipt, engine=engine(dying.Wrong))


def test_a_build_for_another_cpu_is_not_tried_and_does_not_crash(receipt: Receipt) -> None:
    foreign = replace(receipt, target="amx", cpu_flags=(*receipt.cpu_flags, "avx1024_bf16"))
    with pytest.raises(PinError, match=r"cannot be tried here.*without avx1024_bf16"):
        probe(foreign, engine=engine(dying.Undefined))


def test_the_pinned_targets_that_this_cpu_lacks_are_refused_by_their_flags(receipt: Receipt) -> None:
    pins = load_pins().llama_cpp
    for name, target in pins.targets.items():
        missing = machine.missing_flags(target.cpu_flags)
        if missing:
            with pytest.raises(PinError, match=f"without {', '.join(missing)}"):
                probe(replace(receipt, target=name, cpu_flags=target.cpu_flags), engine=engine(dying.Undefined))


def test_a_refused_wheel_stays_refused_until_it_is_tried_again(
    receipt: Receipt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "w.whl"
    check_accepted(wheel)
    refuse(wheel, EngineError("the build of llama.cpp dies", found="SIGILL at `ud2`"))
    with pytest.raises(PinError, match=r"refused when it was tried.*SIGILL at `ud2`"):
        check_accepted(wheel)
    monkeypatch.setattr(isa_build, "installed_folder", lambda: tmp_path / "nowhere")
    monkeypatch.setattr(isa_build, "kept_wheel", lambda *_: wheel)
    monkeypatch.setattr(isa_build, "unpack", lambda _: installed_folder())
    with pytest.raises(PinError, match="refused when it was tried"):
        target_folder(load_pins().llama_cpp, receipt.target, tmp_path)
    monkeypatch.setattr(isa_build, "probe", lambda *_: 26)
    assert try_wheel(wheel) == 26
    check_accepted(wheel)


def test_the_last_line_of_a_log_is_read_and_other_words_are_not() -> None:
    line = "FATAL SIGILL pc=0x7f00 library=/x/libggml-cpu.so.0 offset=0x2ff62 code=c4e27b4b04190f0b"
    fatal = read_fatal(f"loading\nFATAL error\n{line}\nFatal Python error: Illegal instruction\n")
    assert fatal is not None
    assert read_fatal("Fatal Python error: Illegal instruction") is None
    if X86:  # binutils reads the machine code of its own machine
        assert str(fatal) == "SIGILL at `tileloadd (%rcx,%rbx,1),%tmm0` in libggml-cpu.so.0+0x2ff62"
        assert disassemble(dying.UD2) == ["ud2"]
