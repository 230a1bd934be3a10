"""Names of sites as people say them: the weight's name where an op has one."""

from __future__ import annotations

from parity_lib.engines import sites


def op_words(site: str) -> str:
    """Return a site as people say it, ``layer 7 `ffn_down```: the weight's name where the op has one."""
    name, block = sites.split(site)
    found = sites.table(site)
    weight = found.weight.rpartition(".")[0]
    word = f"`{weight or name}`" + ("" if weight else f" ({found.op})")
    return word if block is None else f"layer {block} {word}"


def short_name(part: str) -> str:
    """Return the name of a waterfall's part for an axis: a layer's number, a weight, or the site."""
    if part.startswith("layer "):
        return part.removeprefix("layer ")
    return sites.table(part).weight.rpartition(".")[0] or part.removeprefix("result_")
