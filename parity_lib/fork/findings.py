"""What is wrong with a checkout of the ndarray fork, each shown by running it: the checks behind docs/findings.md.

A check calls the checkout's own code through a small program (docs/findings/probe), or reads one table of its source,
and compares with what the format, the instruction set or the C library says. It is present, or it is not; a check that
cannot be made here says so and is neither.
"""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from parity_lib.base.errors import EngineError, UsageError
from parity_lib.base.surroundings import cache_dir

PROBE = Path(__file__).resolve().parents[2] / "docs" / "findings" / "probe"
PRCTL, ARCH_PRCTL, REQ_XCOMP_PERM, XTILEDATA, EINVAL = 157, 158, 0x1023, 18, 22  # asm/unistd_64.h, asm/prctl.h
# What the first bytes in each function of amx_matmul.rs are meant to be. The pointer is in rcx, the stride in rax.
TILES = {
    "tile_dpbusd": "tdpbusd %tmm2,%tmm1,%tmm0",
    "tile_dpbf16ps": "tdpbf16ps %tmm2,%tmm1,%tmm0",
    "tile_load": "tileloadd (%rcx,%rax,1),%tmm1",
    "tile_store": "tilestored %tmm0,(%rcx,%rax,1)",
}


@dataclass(frozen=True, slots=True)
class Found:
    """The result of one check. ``present`` is None if it could not be made."""

    name: str
    present: bool | None
    measured: str


class Checkout:
    """A checkout of the fork, and the probe that is built on it."""

    def __init__(self, source: Path) -> None:
        self.source = source.resolve()
        if not (self.source / "src" / "hpc").is_dir():
            raise UsageError(
                "this is no checkout of the ndarray fork", place=source, expected="a folder with src/hpc", found="none"
            )
        self._probe: Path | None = None

    def run(self, *words: str) -> list[str]:
        """Return the lines that the probe prints; it is built when it is first needed.

        Raises:
            EngineError: it does not build, or ends with an error.
        """
        self._probe = self._probe or self._build()
        done = subprocess.run([str(self._probe), *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EngineError("the probe failed", place=" ".join(words), found=done.stderr[-500:])
        return done.stdout.splitlines()

    def text(self, path: str) -> str:
        """Return a file of the checkout, or "" where it is not there."""
        file = self.source / path
        return file.read_text(errors="replace") if file.is_file() else ""

    def _build(self) -> Path:
        folder = cache_dir() / "findings"
        shutil.copytree(PROBE, folder / "probe", dirs_exist_ok=True)
        (folder / "probe" / "Cargo.lock").unlink(missing_ok=True)  # of another checkout
        command = ["cargo", "build", "--release", "--quiet", "--manifest-path", str(folder / "probe" / "Cargo.toml")]
        command += ["--target-dir", str(folder / "target"), "--config", f'patch.crates-io.ndarray.path="{self.source}"']
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise EngineError("cargo does not run", place="PATH", found=error, next_step="install Rust") from error
        if done.returncode != 0:
            raise EngineError("the probe does not build on this checkout", place=self.source, found=done.stderr[-1500:])
        return folder / "target" / "release" / "findings-probe"


def exp_range(checkout: Checkout) -> Found:
    """Check exp of numbers below -87 and of infinities, in the vector path and in the tail of the same buffer."""
    inputs = ("-88.5", "-90", "-100", "-1e30", "-inf", "100")
    wrong = []
    for line in checkout.run("exp", *inputs):
        x, vector, tail = (float(word) for word in line.split())
        right = _exp(x)
        if not _near(vector, right):
            wrong.append(f"exp({x:g}) = {vector:g}, in the tail {tail:g}, right {right:.3g}")
    return Found("exp-range", bool(wrong), "; ".join(wrong) or "all right")


def exp_place(checkout: Checkout) -> Found:
    """Exp of many numbers in the vector path and in the tail: a value that depends on its place in the buffer."""
    return _place(checkout, "exp", "exp")


def sigmoid_place(checkout: Checkout) -> Found:
    """The same for the sigmoid, which SiLU is made of."""
    return _place(checkout, "sigmoid", "sigmoid")


def _place(checkout: Checkout, function: str, word: str) -> Found:
    lines = checkout.run(function, "1", *(f"{x:.6g}" for x in np.linspace(-20, 20, 201)))
    differ = [(x, vector, tail) for x, vector, tail in map(str.split, lines) if vector != tail]
    if not differ:
        return Found(f"{word}-place", present=False, measured=f"{len(lines)} numbers have the same bits at both places")
    x, vector, tail = differ[0]
    first = f"{word}({float(x):g}) = {vector} among 16 values, {tail} as the 17th"
    return Found(f"{word}-place", present=True, measured=f"{len(differ)} of {len(lines)} numbers differ: {first}")


def reciprocal(checkout: Checkout) -> Found:
    """Whether the reciprocal of the fork's ``crates/burn`` is left to burn-ndarray, whose ``simd`` estimates it."""
    text = checkout.text("crates/burn/src/ops/tensor.rs")
    body = re.search(r"fn float_recip\b.*?(?=\n    fn |\Z)", text, re.DOTALL)
    if body is None:
        return Found("reciprocal", present=None, measured="needs crates/burn/src/ops/tensor.rs with fn float_recip")
    left = "::recip(" in body[0]
    words = "left to burn-ndarray, whose feature simd takes the CPU's estimate" if left else "a division of its own"
    return Found("reciprocal", present=left, measured=f"read in the source: {words}")


def _exp(x: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.exp(np.float32(x)))


def _near(found: float, right: float) -> bool:
    finite = math.isfinite(right) and math.isfinite(found)
    return found == right or (finite and abs(found - right) <= 1e-5 * abs(right) + 1e-38)


def bf16_plain(checkout: Checkout) -> Found:
    """Compare ``BF16::from_f32`` with the nearest BF16."""
    plain, _, n = map(int, checkout.run("bf16")[0].split())
    return Found("bf16-truncates", plain > 0, f"BF16::from_f32: {plain:,} of {n:,} values are not the nearest BF16")


def tile_config(checkout: Checkout) -> Found:
    """Check the tile configuration: 16-bit bytes per row from byte 16, rows from byte 48 (Intel SDM, LDTILECFG)."""
    data = bytes(int(word) for word in checkout.run("tiles")[0].split())
    columns, rows = np.frombuffer(data[16:22], "<u2").tolist(), list(data[48:51])
    right = columns == [64, 64, 64] and rows == [16, 16, 16]
    return Found("tile-config", not right, f"tiles 0 to 2: bytes per row {columns}, rows {rows}; right is 64 and 16")


def tile_bytes(checkout: Checkout) -> Found:
    """Disassemble the hand-written bytes of the tile products."""
    text = checkout.text("src/hpc/amx_matmul.rs")
    if shutil.which("objdump") is None or not text:
        return Found("tile-bytes", None, "needs objdump and src/hpc/amx_matmul.rs")
    told = []
    for function, meant in TILES.items():
        held = re.search(rf"fn {function}\(.*?\.byte ([^\"]+)\"", text, re.DOTALL)
        if held is not None:
            seen = _disassembled(bytes(int(word, 16) for word in held[1].split(",")))
            told.append((meant, seen))
    wrong = [f"{meant} reads as {seen}" for meant, seen in told if seen != meant]
    return Found("tile-bytes", bool(wrong) if told else None, "; ".join(wrong) or f"{len(told)} sequences are right")


def _disassembled(code: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(code)
        file.flush()
        words = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", file.name]
        lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return " ".join(lines[-1].split("\t")[-1].split()) if lines else "nothing"


def amx_permission(checkout: Checkout) -> Found:
    """Check the system call that asks Linux for tiles: its number in the source, the kernel's answer to each number."""
    number = re.search(r"SYS_PRCTL: i64 = (\d+)", checkout.text("src/simd_amx.rs"))
    if number is None:
        return Found("amx-permission", False, "no constant SYS_PRCTL in src/simd_amx.rs")
    answers = {call: _syscall(call) for call in (PRCTL, ARCH_PRCTL)}
    said = ", ".join(f"call {call} gives errno {errno}" for call, errno in answers.items())
    present = int(number[1]) == PRCTL and answers[PRCTL] == EINVAL
    return Found("amx-permission", present, f"the source calls {number[1]}; this kernel: {said} (0 is granted)")


def _syscall(number: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.syscall(number, REQ_XCOMP_PERM, XTILEDATA, 0, 0, 0) != 0 else 0


def vnni_tail(checkout: Checkout) -> Found:
    """Compute a dot product of 70 ones with 70 ones."""
    said = checkout.run("vnni")[0]
    if not said.isdigit():
        return Found("vnni-tail", None, "this CPU has no AVX512-VNNI")
    return Found("vnni-tail", said != "70", f"vnni_dot_u8_i8 of 70 ones with 70 ones is {said}")


def gguf_type(kind: gguf.GGMLQuantizationType) -> Callable[[Checkout], Found]:
    """Return a check of the GGUF reader: random blocks of a type, against ``gguf.dequantize``."""

    def check(checkout: Checkout) -> Found:
        name = f"gguf-{kind.name.lower()}"
        right, said, found = _read_back(checkout, kind)
        if found is None:
            return Found(name, present=True, measured=f"refused: {said}")
        equal = float((found == right).mean())
        cosine = float(found @ right / np.sqrt((found @ found) * (right @ right)))
        return Found(name, equal < 1, f"{equal:.1%} of {right.size:,} values equal, cosine {cosine:.3f}")

    return check


def _read_back(checkout: Checkout, kind: gguf.GGMLQuantizationType) -> tuple[np.ndarray, str, np.ndarray | None]:
    size, width = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(7)
    blocks = random.integers(0, 256, (64, 4 * width), np.uint8)
    scales = random.uniform(0.01, 0.1, (64, 4, 4)).astype("<f2").view(np.uint8)
    at = width - 2 if kind.name == "Q6_K" else 0  # where the type keeps its first scale
    for block in range(4):
        blocks[:, block * width + at : block * width + at + 2] = scales[:, block, :2]
        if kind.name == "Q4_K":
            blocks[:, block * width + 2 : block * width + 4] = scales[:, block, 2:4]
    right = gguf.dequantize(blocks, kind).astype("<f4").ravel()
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "probe.gguf", Path(folder) / "values.f32"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor("w.weight", blocks, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        said = checkout.run("gguf", str(path), "w.weight", str(out))[0]
        found = np.fromfile(out, "<f4") if out.is_file() else None
    assert right.size == 64 * 4 * size, "gguf's own sizes"
    return right, said, found


RANGES = {"around 0": (-3.0, 5.0), "above 0": (10.0, 20.0), "below 0": (-20.0, -10.0)}  # of 64 numbers


def quantizer(kind: str) -> Callable[[Checkout], Found]:
    """Return a check of a quantiser: there and back, no number may be off by more than half a step."""

    def check(checkout: Checkout) -> Found:
        wrong = []
        for where, (low, high) in RANGES.items():
            values = np.linspace(low, high, 64, dtype=np.float32)
            step, *back = map(float, checkout.run("quantize", kind, *(f"{value:.9g}" for value in values))[0].split())
            off = np.abs(np.array(back) - values) / step
            if off.max() > 0.5 + 1e-4:
                at = int(off.argmax())
                wrong.append(f"numbers {where}: {values[at]:g} comes back as {back[at]:g}, {off[at]:.0f} steps off")
        return Found(f"quantize-{kind}", bool(wrong), "; ".join(wrong) or "at most half a step off, on all ranges")

    return check


_Q = gguf.GGMLQuantizationType
CHECKS: Mapping[str, Callable[[Checkout], Found]] = {
    "exp-range": exp_range,
    "exp-place": exp_place,
    "sigmoid-place": sigmoid_place,
    "reciprocal": reciprocal,
    "gguf-q4_k": gguf_type(_Q.Q4_K),
    "gguf-q4_0": gguf_type(_Q.Q4_0),
    "gguf-q6_k": gguf_type(_Q.Q6_K),
    "gguf-q8_0": gguf_type(_Q.Q8_0),
    "amx-permission": amx_permission,
    "tile-config": tile_config,
    "tile-bytes": tile_bytes,
    "quantize-u8": quantizer("u8"),
    "quantize-i8": quantizer("i8"),
    "quantize-i4": quantizer("i4"),
    "quantize-i2": quantizer("i2"),
    "bf16-truncates": bf16_plain,
    "vnni-tail": vnni_tail,
}


def check(source: Path, names: Sequence[str] = ()) -> list[Found]:
    """Return what the named checks show of a checkout; all of them by default.

    Raises:
        UsageError: an unknown name, or no checkout.
        EngineError: the probe does not build or fails.
    """
    for name in names:
        if name not in CHECKS:
            raise UsageError("there is no such finding", expected=", ".join(CHECKS), found=name)
    checkout = Checkout(source)
    return [CHECKS[name](checkout) for name in names or CHECKS]
