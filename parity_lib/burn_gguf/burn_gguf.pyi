"""burn as the candidate of a numerical parity suite. Floats cross as bytes of little-endian float32, by rows."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import final

class BurnError(Exception):
    """The engine refused or failed; the message says why."""

class BurnFileError(BurnError):
    """The model file cannot be read or asks for what is not supported."""

@final
class GgufFile:
    def __new__(cls, path: str | PathLike[str]) -> GgufFile: ...
    def metadata_json(self) -> str: ...
    def tensors(self) -> list[tuple[str, str, list[int], int]]:
        """Name, type, dimensions in ggml's order (fastest first), bytes."""

    def dequantize(self, name: str, scalar: bool = False) -> bytes: ...

@final
class Model:
    def __new__(
        cls,
        path: str | PathLike[str],
        policy: str = "f32",
        n_threads: int = 2,
        fault: str | None = None,
        plain: Sequence[str] = ...,
    ) -> Model: ...
    def facts_json(self) -> str: ...
    def score(
        self,
        sequences: Sequence[Sequence[int]],
        sink_path: str | PathLike[str],
        progress: Callable[[int, int], object] | None = None,
    ) -> list[int]:
        """Append every row's logits, (n_vocab,) each, to the file; return the rows written for each sequence."""

@final
class Session:
    def __new__(cls, model: Model, n_seq: int) -> Session: ...
    def lengths(self) -> list[int]: ...
    def append(
        self,
        rows: Sequence[tuple[int, int]],
        taps: Sequence[str] = ...,
        logits: Sequence[int] | None = None,
        progress: Callable[[int, int], object] | None = None,
        observe: Callable[[str, list[int], bytes], bytes | None] | None = None,
    ) -> tuple[bytes, dict[str, tuple[list[int], bytes]]]:
        """Append rows (sequence, token) as one pass; logits (n, n_vocab), and taps as name -> (shape, values).

        ``logits`` lists the rows whose logits are wanted, all if it is None. ``observe`` is called at every site with
        (name, shape, values); values that it returns take the site's place. One sequence at a time.
        """

    def score_from(
        self,
        layer: int,
        residual: bytes,
        rows: Sequence[tuple[int, int]],
        taps: Sequence[str] = ...,
        logits: Sequence[int] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> tuple[bytes, dict[str, tuple[list[int], bytes]]]:
        """The same, entered at block ``layer`` with its residual stream (n, n_embd)."""

    def save(self) -> bytes: ...
    def restore(self, state: bytes) -> None: ...

def op_linear(
    ty: str, blocks: bytes, n_out: int, n_in: int, x: bytes, policy: str = "f32", n_threads: int = 1
) -> bytes: ...
def op_rms_norm(x: bytes, weight: bytes, eps: float, n_threads: int = 1) -> bytes: ...
def op_rope(
    x: bytes,
    n_heads: int,
    head: int,
    positions: Sequence[int],
    pairing: str,
    n_dims: int,
    base: float,
    divisors: bytes | None = None,
    n_threads: int = 1,
) -> bytes: ...
def op_attention(
    q: bytes,
    k: bytes,
    v: bytes,
    rows: Sequence[tuple[int, int]],
    n_head: int,
    n_head_kv: int,
    key_length: int,
    value_length: int,
    scale: float,
    n_threads: int = 1,
) -> bytes: ...
def op_kq(queries: bytes, keys: bytes, d: int, n_threads: int = 1) -> bytes: ...
def op_soft_max(kq: bytes, n: int, visible: Sequence[int], scale: float, n_threads: int = 1) -> bytes: ...
def op_kqv(weights: bytes, n: int, values: bytes, d: int, n_threads: int = 1) -> bytes: ...
def op_swiglu(gate: bytes, up: bytes, n_threads: int = 1) -> bytes: ...
def op_add(a: bytes, b: bytes, n_threads: int = 1) -> bytes: ...
def op_embed(ty: str, blocks: bytes, n_vocab: int, n_embd: int, tokens: Sequence[int]) -> bytes: ...
def faults() -> list[tuple[str, str]]:
    """Every fault that this library can seed: as it is written, and what it does. The judged library has none."""

def plain_ops() -> list[tuple[str, str]]:
    """Every op of burn that a run can replace by a plain twin, to find a reason: its name, and what is replaced."""

def sites(n_layer: int) -> list[str]: ...
def build_info() -> str:
    """JSON: version, stack, digests of sources and lock, crates, compiler, target, profile."""

def isa_json() -> str:
    """JSON: CPU flags, compiled kernels, and what is proven about them."""

def sampling_start() -> None:
    """Note where program counters stand, in every library of this process, until ``sampling_stop``.

    It and ``sampling_stop`` are there on Linux in builds with the feature ``sampler``.
    """

def sampling_stop() -> str:
    """JSON: n samples, how many were lost, and places as [library, function, instruction ...], count."""
