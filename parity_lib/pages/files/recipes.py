"""Where each pinned model file comes from, and how near the derived ones are to the model they were derived from."""

from __future__ import annotations

from collections.abc import Sequence

from parity_lib.models.ensure import ModelStatus
from parity_lib.models.recipes import receipt_equalities
from parity_lib.pages.kit.fragment import Fragment, heading, note
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, margin, number
from parity_lib.records.model_receipts import Equality
from parity_lib.records.pins import Recipe

_FILES = (Column("file"), Column("role"), Column("where it comes from"))
_EQUAL = (
    Column("derived file"),
    Column("step"),
    Column("against"),
    Column("positions", numeric=True),
    Column("rms over std of F32 logits", numeric=True),
    Column("limit", numeric=True),
    Column("margin", numeric=True),
    Column("largest difference of any logit", numeric=True),
)
_NOTE = "llama.cpp, strict settings, F32 files on both sides, taken when the file was made here, before it was kept."


def origin_table(files: Sequence[ModelStatus]) -> Fragment:
    """Return where each file comes from, then the equalities that the receipts of the files on this machine hold."""
    rows = [[f"{s.pin.id} {s.pin.quant}", s.pin.role, recipe_words(s.pin.recipe)] for s in files]
    own = [_equality(status, equality) for status in files for equality in receipt_equalities(status.path)]
    origins = table(_FILES, rows, css="files")
    if not own:
        return origins + note("No derived model was made on this machine yet: no equality to a source was measured.")
    return origins + heading("Derived models against their source") + table(_EQUAL, own, css="native") + note(_NOTE)


def recipe_words(recipe: Recipe) -> str:
    """Return a recipe in one sentence."""
    source = " ".join(word for word in (recipe.source_id, recipe.source_quant) if word)
    mirror = len(recipe.wheels)
    return {
        "wheel": " and ".join(f"{wheel.member} out of the wheel {wheel.requirement}" for wheel in recipe.wheels),
        "quantize": f"llama.cpp's quantiser, {recipe.ftype}, from {source} widened to F32",
        "widen": f"{source}, rows padded with zeros to {recipe.n_embd}",
        "qwen2": f"{source} as qwen2, a metamorphic test: biases up to {number(recipe.bias)}, seed {recipe.seed}",
        "synthetic": f"written from integers, {recipe.ftype}, seed {recipe.seed}",
        "staged": f"staged by the operator from {recipe.repository}",
        "fetch": f"fetched on request: {recipe.url}{f', or {mirror} wheels of a mirror' if mirror else ''}",
    }.get(recipe.kind, recipe.kind)


def _equality(status: ModelStatus, equality: Equality) -> list[str]:
    return [
        f"{status.pin.id} {status.pin.quant}",
        equality.step,
        equality.source or NONE,
        count(equality.positions),
        number(equality.rms_over_std),
        number(equality.limit),
        margin(equality.rms_over_std, equality.limit),
        number(equality.max_abs),
    ]
