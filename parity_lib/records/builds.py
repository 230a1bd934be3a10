"""What each engine was built from: receipts of llama.cpp and of a stack, and what the Rust extension says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta

from parity_lib.base.names import Isa
from parity_lib.base.record import Commit, NotEmpty, Record, Sha256


class Receipt(Record, frozen=True, tag_field="schema", tag="parity/build-receipt/1"):
    """What one build of the reference is. Two builds with equal receipts gave the same libraries."""

    binding: NotEmpty  # "llama-cpp-python"
    version: NotEmpty
    commit: Commit  # of llama.cpp, 40 hex digits, as pinned
    sdist_sha256: Sha256
    wheel_sha256: Sha256
    target: Annotated[str, Meta(pattern=f"^({'|'.join(Isa)})$")]  # "avx512", "avx2", "neon"
    cmake_args: Annotated[tuple[NotEmpty, ...], Meta(min_length=1)]
    cpu_flags: tuple[NotEmpty, ...]  # as /proc/cpuinfo lists them; the libraries use all of these without asking
    compiler: NotEmpty  # first line of ``c++ --version``
    tools: Mapping[str, str]  # cmake, ninja, scikit-build-core
    architecture: NotEmpty  # "x86_64", "aarch64"
    libraries: Annotated[Mapping[str, Sha256], Meta(min_length=1)]  # every lib*.so* of the package's lib folder


class StackReceipt(Record, frozen=True, tag_field="schema", tag="parity/stack-receipt/1"):
    """Sources, compiler and hashes of one build of a stack. A library with another hash is refused."""

    stack: str
    key: str
    source_sha256: str  # of the Rust sources and the stack's manifest, see ``burn_gguf/build.rs``
    lock_sha256: str
    recipe_sha256: str  # of the code that prepares patched crates
    revision: str  # of the fork, 40 hex digits; empty where everything comes from crates.io
    fork_sha256: str  # of the fork's files
    patched: Mapping[str, str]  # crate that cargo compiled from a patched folder -> its version
    library_sha256: str
    rustc: str
    features: tuple[str, ...]
    target: str
    faults: Mapping[str, str] = {}  # that it can seed, as written -> what it does
    fixes: tuple[str, ...] = ()  # that were written into the fork's source before it was compiled

    def words(self) -> str:
        """Return the build in a line."""
        fork = f"fork {self.revision[:12]}, " if self.revision else ""
        fork += f"fixed {' '.join(self.fixes)}, " if self.fixes else ""
        patched = ", ".join(f"{crate} {version}" for crate, version in self.patched.items())
        return (
            f"{fork}{f'patched {patched}, ' if patched else ''}lock {self.lock_sha256[:12]}, "
            f"library {self.library_sha256[:12]}, {self.rustc}, features {' '.join(self.features) or 'none'}"
        )


class BurnBuild(Record, frozen=True):
    """What a library of the candidate says of itself, which of the two it is, and its receipt if it is a stack's."""

    version: NotEmpty  # of the crate burn_gguf
    stack: NotEmpty
    source_sha256: Sha256
    lock_sha256: Sha256
    crates: Mapping[str, str]  # crate -> version
    rustc: NotEmpty
    target: NotEmpty  # the compiler's target triple
    target_features: str
    profile: NotEmpty
    opt_level: NotEmpty
    features: str  # of the crate, with commas between
    debug_assertions: bool
    allocator: NotEmpty
    library: NotEmpty  # "without faults" or "with faults"
    receipt: StackReceipt | None  # None: the extension that set-up installs
