"""Checks of a checkout on what can be there without one: its source as it was and as it should be, and refusals."""

from __future__ import annotations

import math
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import EngineError, UsageError
from parity_lib.cli.app import main
from parity_lib.fork import findings
from parity_lib.fork.findings import CHECKS, PROBE, Checkout, amx_permission, check, tile_bytes

pytestmark = pytest.mark.engine

WRONG = ("0xc4, 0xe2, 0x73, 0x5e, 0xc1", "0xc4, 0xe2, 0x7b, 0x4b, 0x0c, 0x08")
RIGHT = ("0xc4, 0xe2, 0x69, 0x5e, 0xc1", "0xc4, 0xe2, 0x7b, 0x4b, 0x0c, 0x01")  # as GNU as 2.40 writes them


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "src" / "hpc").mkdir(parents=True)
    return tmp_path


def write_tiles(checkout: Path, product: str, load: str) -> None:
    text = f'pub unsafe fn tile_dpbusd() {{ asm!(".byte {product}", options(nostack)); }}\n'
    text += f'pub unsafe fn tile_load(tile: u8) {{ asm!(".byte {load}"); }}\n'
    (checkout / "src" / "hpc" / "amx_matmul.rs").write_text(text)


def test_bytes_are_read_by_a_disassembler(checkout: Path) -> None:
    assert shutil.which("objdump"), "binutils belong to every compiler"
    write_tiles(checkout, *WRONG)
    found = tile_bytes(Checkout(checkout))
    assert found.present
    assert "tdpbusd %tmm2,%tmm1,%tmm0 reads as tdpbssd" in found.measured
    assert "tileloadd (%rcx,%rax,1),%tmm1 reads as tileloadd (%rax,%rcx,1),%tmm1" in found.measured
    write_tiles(checkout, *RIGHT)
    assert tile_bytes(Checkout(checkout)) == findings.Found("tile-bytes", False, "2 sequences are right")


def test_a_check_that_cannot_be_made_is_neither(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tile_bytes(Checkout(checkout)).present is None
    assert main(["finding", "tile-bytes", "--source", str(checkout)]) == 3
    assert capsys.readouterr().out.startswith("not run  tile-bytes")


def test_the_system_call_for_tiles_is_asked_of_this_kernel(checkout: Path) -> None:
    source = checkout / "src" / "simd_amx.rs"
    for number, present in ((findings.PRCTL, True), (findings.ARCH_PRCTL, False)):
        source.write_text(f"const SYS_PRCTL: i64 = {number};")
        found = amx_permission(Checkout(checkout))
        assert found.present == (present and platform.machine() == "x86_64")
        assert f"the source calls {number}" in found.measured
    source.unlink()
    assert amx_permission(Checkout(checkout)).present is False


@pytest.mark.parametrize(
    ("found", "right", "near"),
    [
        (1.0, 1.0, True),
        (1.0 + 9e-6, 1.0, True),
        (1.0 + 2e-5, 1.0, False),
        (-2.3e-34, math.inf, False),
        (math.inf, math.inf, True),
        (-math.inf, 3.7e-39, False),
        (math.nan, 0.0, False),
        (3.6e-39, 3.7e-39, True),
    ],
)
def test_a_value_is_near_or_not(found: float, right: float, near: bool) -> None:
    assert findings._near(found, right) is near


class Quantiser(Checkout):
    """A checkout whose quantiser of 8 bits keeps its zero point inside of the codes, or lets it go where it has to."""

    def __init__(self, *, clamped: bool) -> None:
        self.clamped = clamped

    def run(self, *words: str) -> list[str]:
        values = np.array(words[2:], np.float64)
        scale = np.ptp(values) / 255
        zero = np.round(-values.min() / scale)
        zero = np.clip(zero, 0, 255) if self.clamped else zero
        back = (np.clip(np.round(values / scale + zero), 0, 255) - zero) * scale
        return [" ".join(map(str, [scale, *back]))]


def test_a_quantiser_may_be_half_a_step_off_on_any_range() -> None:
    wrong = findings.quantizer("u8")(Quantiser(clamped=True))
    assert (wrong.name, wrong.present) == ("quantize-u8", True)
    assert "numbers above 0: 20 comes back as 10, 255 steps off" in wrong.measured
    assert "around 0" not in wrong.measured
    assert findings.quantizer("u8")(Quantiser(clamped=False)).present is False


def test_what_is_unknown_is_refused_with_what_there_is(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exp-range"):
        check(checkout, ["no-such"])
    with pytest.raises(UsageError, match="no checkout of the ndarray fork"):
        check(tmp_path / "nowhere")
    assert main(["finding", "--source", str(tmp_path / "nowhere")]) == 2


def test_a_checkout_that_does_not_build_says_why(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EngineError, match="the probe does not build on this checkout"):
        check(checkout, ["vnni-tail"])


def test_every_finding_of_the_page_is_a_check() -> None:
    page = (PROBE.parents[1] / "findings.md").read_text()
    named = {word for line in page.splitlines() if "parity finding " in line for word in CHECKS if f" {word} " in line}
    assert named == set(CHECKS) - {"gguf-q8_0", "quantize-i8", "quantize-i4", "quantize-i2"}  # those that are right
