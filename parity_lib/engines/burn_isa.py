"""The candidate's evidence for rung T7: samples of its own library, and what its arithmetic gives away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from parity_lib.compare.isa import MIN_PRODUCTS
from parity_lib.engines.sampler import Watch
from parity_lib.isa_proofs import BURN, Evidence, Sampled
from parity_lib.names import Isa
from parity_lib.traces import F32

OWN = ("burn_gguf",)  # everything that burn is lies in one library
RUN = "forced pass"
ENOUGH = 4 * MIN_PRODUCTS  # samples at multiply-adds after which nothing more is run


def evidence(watch: Watch | None, requested: Isa, arithmetic: Mapping[str, str]) -> Evidence:
    """Return what is known of a candidate's passes.

    Args:
        watch: what sampled them, or None if nothing did.
        requested: the leg that was asked for.
        arithmetic: from :func:`fingerprint`.
    """
    sampled = None if watch is None else watch.seen()
    absent = "no pass was sampled" if watch is None else watch.absent
    return Evidence(BURN, RUN, str(requested), sampled, absent, arithmetic=arithmetic)


def fingerprint(linear: Callable[..., F32], policy: str) -> dict[str, str]:
    """Return what two products of two numbers each tell: whether a product is rounded before it is added, and to what.

    With e = 2^-12, (1 + e)(1 + e) - (1 + 2e) is e^2 in one rounding, and 0 if the product is rounded to float32 first.
    1 times (1 + e) is 1 if the operands are rounded to BF16. AVX2 and AVX-512 give the same bits: they are not told
    apart here, and products of BF16 numbers are exact, so that nothing is said of those.

    Both are told by what lies nearer: a product with a wrong low bit is for other rungs to find.

    Args:
        linear: the candidate's own op, ``linear(type, blocks, n_out, n_in, x, policy)``.
        policy: arithmetic of the weight matmuls.
    """
    e = np.float32(2.0**-12)
    one = np.float32(1)

    def product(weight: list[Any], x: list[Any]) -> float:
        blocks = np.array(weight, "<f4").tobytes()
        return float(linear("F32", blocks, 1, 2, np.array(x, np.float32), policy)[0])

    if abs(product([one + e, 0], [one, 0]) - 1) < e / 2:
        return {"operands": "bf16", "fma": "not told"}
    fused = product([-(one + 2 * e), one + e], [one, one + e]) > float(e) ** 2 / 2
    return {"operands": "f32", "fma": "yes" if fused else "no"}


def is_enough(seen: Sampled) -> bool:
    """Return whether nothing more has to be run to judge a candidate."""
    return sum(seen.products.values()) >= ENOUGH
