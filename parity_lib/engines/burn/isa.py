"""The candidate's evidence for rung T7: samples of its own library, and what its arithmetic gives away."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from parity_lib.base.names import Isa
from parity_lib.engines.sampler import Watch
from parity_lib.numerics.isa_samples import MIN_PRODUCTS
from parity_lib.records.isa_evidence import BURN, Evidence, Sampled
from parity_lib.records.traces import F32

OWN = ("burn_gguf",)  # everything that burn is lies in one library
RUN = "teacher-forced pass"
TERMS = 32  # of a fingerprint's products
ENOUGH = 4 * MIN_PRODUCTS  # samples at multiply-adds after which sampling stops


def evidence(watch: Watch | None, requested: Isa, arithmetic: Mapping[str, str]) -> Evidence:
    """Return the evidence of which instructions a candidate's passes ran.

    Args:
        watch: what sampled them, or None if nothing did.
        requested: the ISA target that was asked for.
        arithmetic: from :func:`fingerprint`.
    """
    sampled = None if watch is None else watch.seen()
    absent = "no pass was sampled" if watch is None else watch.absent
    return Evidence(BURN, RUN, str(requested), sampled, absent, arithmetic=arithmetic)


def fingerprint(linear: Callable[..., F32], policy: str) -> dict[str, str]:
    """Return how burn's products round, from two small ones: fused multiply-add or not, f32 or BF16 operands.

    With e = 2^-12, (1 + e)(1 + e) - (1 + 2e) is e^2 in one rounding, and 0 if the product is rounded to float32 first.
    1 times (1 + e) is 1 if the operands are rounded to BF16. AVX2 and AVX-512 give the same bits: they are not told
    apart here, and products of BF16 numbers are exact, so that nothing is said of those.

    The products have ``TERMS`` terms, all but two of them 0, and as many rows and columns: a crate may have other code
    for one row or for two terms (gemm has), and no model's product has so few. The second number stands at each place
    in turn, since only terms that meet in one partial sum can tell; what is rounded gives 0 at all of them.

    Each is decided by the nearer value: a wrong low bit of a product is for other rungs to find.

    Args:
        linear: the candidate's own op, ``linear(type, blocks, n_out, n_in, x, policy)``.
        policy: arithmetic of the weight matmuls.
    """
    e, one = 2.0**-12, 1.0

    def products(weight: list[float], rows: list[list[float]]) -> F32:
        blocks = np.array([weight] * TERMS, "<f4").tobytes()
        return linear("F32", blocks, TERMS, TERMS, np.array(rows, np.float32).ravel(), policy)

    single = [one] + [0.0] * (TERMS - 1)
    if abs(float(products([(one + e) * term for term in single], [single] * TERMS)[0]) - 1) < e / 2:
        return {"operands": "bf16", "fma": "not told"}
    pairs = [[one] + [one + e if term == other else 0.0 for term in range(1, TERMS)] for other in range(1, TERMS)]
    fused = products([-(one + 2 * e)] + [one + e] * (TERMS - 1), pairs).max() > e**2 / 2
    return {"operands": "f32", "fma": "yes" if fused else "no"}


def is_enough(seen: Sampled) -> bool:
    """Return whether there are enough samples at multiply-adds to judge a candidate."""
    return sum(seen.products.values()) >= ENOUGH
