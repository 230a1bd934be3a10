"""Cut one op out of a captured run, as small as it may be: one dot product, then some rows, then the whole op.

Each step keeps what the op needs at one position: the reference's values of its producers and the raw blocks of the
rows in question. Which step is small enough and still shows the fault is for the caller to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from parity_lib.engines import sites
from parity_lib.engines.node_file import NodeFile
from parity_lib.engines.one_op import Input, OneOp, Rows, Sizes
from parity_lib.judge.one_op import POSITION, TENSOR, Limit, Worst
from parity_lib.model_file.facts import ModelFacts
from parity_lib.model_file.header import ModelFile, Tensor
from parity_lib.numerics.op_error import OpError
from parity_lib.records.traces import F32

DOT, NUMBER, ROW, SOME, WHOLE = "one dot product", "one number", "one row", "some rows", "the whole op at one position"
KV_PAD = 256  # llama.cpp's graph has room for a multiple of so many keys (llama-kv-cache.cpp, get_n_kv)
NEIGHBOURS = 32  # rows or numbers that are kept together: no fewer than a kernel takes at once


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Where an op is cut from."""

    nodes: NodeFile
    facts: ModelFacts
    candidate_facts: ModelFacts
    reference: ModelFile
    candidate: ModelFile
    compute: str
    error: OpError
    limit: Limit
    worst: Worst
    values: tuple[F32, F32]  # of reference and candidate, as they were compared

    @property
    def position(self) -> int:
        """Return the position that is kept."""
        return self.error.first_position + self.worst.row


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """One step of the reduction: the op, and both engines' recorded values of it."""

    step: str
    op: OneOp
    reference: F32  # flat, as the reduced site has it
    candidate: F32


def cuts(source: Source) -> Iterator[Cut]:
    """Yield the reductions of an op, the smallest first; each as a pass of one row, then in a pass as long as its own.

    A step that would be the same as the one before it is left out.
    """
    seen: set[tuple[object, ...]] = set()
    for number, make in enumerate(_steps(source)):
        cut = make()
        kept = () if cut.op.weight is None else cut.op.weight.rows
        size = (cut.op.judged, len(cut.reference), kept, *(given.values.size for given in cut.op.inputs))
        if size in seen:
            continue
        seen.add(size)
        cut = replace(cut, step=(_first_step(cut), SOME, WHOLE)[number])
        yield replace(cut, op=cut.op.alone())
        if cut.op.before:
            yield cut


def _first_step(cut: Cut) -> str:
    if cut.op.table.op == "MUL_MAT":
        return DOT
    return NUMBER if len(cut.op.judged) == 1 else ROW


def _steps(source: Source) -> Sequence[Callable[[], Cut]]:
    name = sites.split(source.error.site)[0]
    table = sites.table(name)
    if table.inner:
        return [lambda: _inside(source, name, 0), lambda: _inside(source, name, 1), lambda: _inside(source, name, 2)]
    if table.bias_only and name[1:4] != "cur":
        return [lambda: _biased(source, name, 0), lambda: _biased(source, name, 1), lambda: _biased(source, name, 2)]
    if name[1:4] == "cur" or name == "kqv_out":
        return [lambda: _by_head(source, name, 0), lambda: _by_head(source, name, 1), lambda: _by_head(source, name, 2)]
    if table.op == "MUL_MAT":
        return [lambda: _rows(source, name, 0), lambda: _rows(source, name, 1), lambda: _rows(source, name, 2)]
    if table.op in ("ADD", "GLU"):
        return [lambda: _numbers(source, name, 0), lambda: _numbers(source, name, 1), lambda: _numbers(source, name, 2)]
    return [lambda: _norm_or_row(source, name)] * 3


def _op(
    source: Source,
    sizes: Sizes,
    inputs: Sequence[Input],
    weight: tuple[Rows, Rows] | None,
    judged: Sequence[int],
    n_kv: int = 0,
) -> OneOp:
    facts, name = source.facts, sites.split(source.error.site)[0]
    divisors = source.reference.tensors.get("rope_freqs.weight")
    turned = name in ("Qcur", "Kcur") and divisors is not None
    return OneOp(
        site=name,
        arch=facts.arch,
        compute=source.compute,
        eps=facts.rms_eps,
        rope_base=facts.rope_base,
        other_eps=source.candidate_facts.rms_eps,
        other_rope_base=source.candidate_facts.rope_base,
        rope_dim=facts.rope_dim,
        sizes=sizes,
        position=source.position,
        before=source.worst.row,
        row=source.worst.row,
        n_rows=len(source.error.by_position),
        buffer=source.nodes.buffer(source.error.batch, source.error.site),
        n_kv=n_kv,
        inputs=tuple(inputs),
        weight=None if weight is None else weight[0],
        other_weight=None if weight is None or weight[0].blocks == weight[1].blocks else weight[1],
        divisors=divisors.dequantize() if turned and divisors is not None else None,
        judged=tuple(judged),
        rope_scaling=facts.rope_scaling,
        other_rope_scaling=source.candidate_facts.rope_scaling,
    )


def _rows(source: Source, name: str, step: int) -> Cut:
    """Cut a product whose output rows are channels: ``attn_out``, the feed-forward ones, the logits."""
    facts, c = source.facts, source.worst.channel
    width = source.values[0].shape[-1]
    start = c - c % NEIGHBOURS
    kept = [(c, c + 1), (start, min(start + NEIGHBOURS, width)), (0, width)][step]
    n, n_in = kept[1] - kept[0], _tensor(source, source.reference, name).shape[1]
    sizes = {
        "attn_out": Sizes(n_embd=n, value_length=n_in),
        "ffn_gate": Sizes(n_embd=facts.n_embd, n_ff=n),
        "ffn_up": Sizes(n_embd=facts.n_embd, n_ff=n),
        "ffn_out": Sizes(n_embd=n, n_ff=n_in),
        "result_output": Sizes(n_embd=facts.n_embd, n_vocab=n),
    }[name]
    [producer] = sites.table(name).inputs
    inputs = [_input(source, producer, producer)]
    judged = _judged(source, step, c - kept[0], n)
    op = _op(source, sizes, inputs, _weights(source, name, range(*kept), n), judged)
    return _cut(source, op, slice(*kept))


def _by_head(source: Source, name: str, step: int) -> Cut:
    """Cut what has heads side by side: projections, their biases, RoPE, what the cache gets, merged heads."""
    facts, c = source.facts, source.worst.channel
    is_value, table = name.startswith("V") or name == "kqv_out", sites.table(name)
    d = facts.value_length if is_value else facts.key_length
    n_heads = facts.n_head if name in ("kqv_out",) or name[0] == "Q" else facts.n_head_kv
    heads = (0, n_heads) if step == 2 or name == "kqv_out" else (c // d, c // d + 1)
    low, high = heads[0] * d, heads[1] * d
    n = heads[1] - heads[0]
    lengths = {"key_length": 2, "value_length": d} if is_value else {"key_length": d, "value_length": 1}
    both = n if name[0] in "KV" else 1
    if name == "kqv_out":
        value = source.nodes.get(source.error.batch, f"kqv-{_block(source)}")
        row = value.reshape(facts.n_head, -1, d)[:, source.worst.row]
        inputs, weight, n_embd = [Input("kqv", (source.position,), np.array(row))], None, 1
    elif table.op == "MUL_MAT":
        rows = [c] if step == 0 else range(low, high)
        inputs, weight = [_input(source, "attn_norm", "attn_norm")], _weights(source, name, rows, high - low, low)
        n_embd = facts.n_embd
    else:
        producer = _projection(source, name)
        given = _input(source, f"{name[0]}cur.MUL_MAT", producer, slice(low, high))
        weight = _vector(source, table.weight, slice(low, high)) if table.op == "ADD" else None
        inputs, n_embd = [given], 1
    sizes = Sizes(n_embd=n_embd, n_head=n, n_head_kv=both, **lengths)
    step = 2 if table.op == "ROPE" else step
    op = _op(source, sizes, inputs, weight, _judged(source, step, c - low, high - low))
    return _cut(source, op, slice(low, high))


def _inside(source: Source, name: str, step: int) -> Cut:
    """Cut what lies inside of attention: one score, one row of one head, all heads."""
    facts, worst, p = source.facts, source.worst, source.position
    heads = range(facts.n_head) if step == 2 else range(worst.head, worst.head + 1)
    shared = facts.n_head // facts.n_head_kv
    kv = range(facts.n_head_kv) if step == 2 else range(worst.head // shared, worst.head // shared + 1)
    n_kv = -(-(source.error.first_position + len(source.error.by_position)) // KV_PAD) * KV_PAD
    key, dv = facts.key_length, facts.value_length
    if name == "kq":
        queries = _input(source, "Qcur", "Qcur", slice(heads[0] * key, (heads[-1] + 1) * key))
        slots = [worst.channel] if step == 0 else range(p + 1)
        inputs = [queries, _cached(source, "Kcur", slots, slice(kv[0] * key, (kv[-1] + 1) * key))]
        sizes, columns = Sizes(n_head=len(heads), n_head_kv=len(kv), key_length=key), range(p + 1)
    elif name == "kq_soft_max":
        inputs = [_scores(source, "kq", heads)]
        sizes, columns = Sizes(n_head=len(heads), n_head_kv=len(kv), key_length=key), range(p + 1)
    else:
        columns = range(worst.channel, worst.channel + 1) if step == 0 else range(dv)
        span = slice(kv[0] * dv + columns[0], kv[-1] * dv + columns[-1] + 1)
        inputs = [_scores(source, "kq_soft_max", heads), _cached(source, "Vcur", range(p + 1), span)]
        sizes = Sizes(n_head=len(heads), n_head_kv=len(kv), value_length=len(columns))
    place = (worst.head - heads[0]) * len(columns) + worst.channel - columns[0]
    step = 2 if name == "kq_soft_max" else step
    op = _op(source, sizes, inputs, None, _judged(source, step, place, len(heads) * len(columns)), n_kv)
    picked = [
        values[heads.start : heads.stop, worst.row, columns.start : columns.stop].reshape(-1)
        for values in source.values
    ]
    if name == "kq" and step == 0:  # the other scores are zero, as their keys are
        picked = [np.where(np.arange(p + 1) == worst.channel, values, np.float32(0)) for values in picked]
    return Cut("", op, np.array(picked[0]), np.array(picked[1]))


def _columns(source: Source, step: int) -> slice:
    """Return which numbers of a row are kept: the worst one, its neighbours, or all."""
    c, width = source.worst.channel, source.values[0].shape[-1]
    start = c - c % NEIGHBOURS
    return [slice(c, c + 1), slice(start, min(start + NEIGHBOURS, width)), slice(0, width)][step]


def _biased(source: Source, name: str, step: int) -> Cut:
    """Cut the sum of a product and its bias: ``attn_out.ADD`` and those of the feed-forward part."""
    [product], kept = sites.table(name).inputs, _columns(source, step)
    n = kept.stop - kept.start
    sizes = Sizes(n_ff=n) if name in ("ffn_gate.ADD", "ffn_up.ADD") else Sizes(n_embd=n)
    weight, judged = _vector(source, sites.table(name).weight, kept), source.worst.channel - kept.start
    op = _op(source, sizes, [_input(source, product, product, kept)], weight, _judged(source, step, judged, n))
    return _cut(source, op, kept)


def _numbers(source: Source, name: str, step: int) -> Cut:
    """Cut sums of two values and SwiGLU: one number of each operand, its neighbours, or all of the row."""
    c, kept, before = source.worst.channel, _columns(source, step), _before(source)
    producers = [_producer(source, site) for site in sites.table(name).inputs]
    places = ["embd" if site == before else _place(site) for site in producers]
    inputs = [_input(source, place, site, kept) for place, site in zip(places, producers, strict=True)]
    n = kept.stop - kept.start
    sizes = Sizes(n_ff=n) if name == "ffn_swiglu" else Sizes(n_embd=n)
    return _cut(source, _op(source, sizes, inputs, None, _judged(source, step, c - kept.start, n)), kept)


def _norm_or_row(source: Source, name: str) -> Cut:
    """Cut a norm, which needs its whole row, or a row of the embedding table with the row after it."""
    facts, c = source.facts, source.worst.channel
    width = facts.n_embd
    judged = _judged(source, 2, c, width)
    if name == "embd":
        token = source.nodes.tokens[source.position]
        rows = [token, (token + 1) % facts.n_vocab]
        found = [_picked(file, "token_embd.weight", rows, (2, width), (0, 1)) for file in _files(source)]
        return _cut(source, _op(source, Sizes(n_embd=width), [], (found[0], found[1]), judged), slice(0, width))
    producer = {"attn_norm": _before(source), "ffn_norm": "ffn_inp", "result_norm": "l_out"}[name]
    place = "embd" if name == "attn_norm" else producer
    site = f"l_out-{facts.n_layer - 1}" if name == "result_norm" else producer
    weight = _vector(source, sites.table(name).weight, slice(0, width))
    op = _op(source, Sizes(n_embd=width), [_input(source, place, site)], weight, judged)
    return _cut(source, op, slice(0, width))


def _judged(source: Source, step: int, place: int, n: int) -> Sequence[int]:
    """Return the numbers that are compared: the worst one, or all where the op is whole and the limit is of rows."""
    return range(n) if step == 2 and source.limit.kind in (TENSOR, POSITION) else [place]


def _cut(source: Source, op: OneOp, columns: slice) -> Cut:
    picked = [np.array(values[source.worst.row, columns]) for values in source.values]
    if op.weight is not None and len(op.weight.shape) == 2 and op.table.op == "MUL_MAT":
        kept = np.isin(np.arange(len(picked[0])), op.weight.rows)  # what has no weight row is zero
        picked = [np.where(kept, values, np.float32(0)) for values in picked]
    return Cut("", op, picked[0], picked[1])


def _block(source: Source) -> int:
    return sites.split(source.error.site)[1] or 0


def _before(source: Source) -> str:
    """Return the site of the residual stream that enters the block."""
    block = _block(source)
    return "embd" if block == 0 else f"l_out-{block - 1}"


def _producer(source: Source, read: str) -> str:
    """Return the full name of the site that an op reads, as the table of sites names it."""
    if read.startswith("l_out of"):
        return _before(source)
    product, either, _ = read.partition(" or ")
    return sites.summed(product, _block(source), source.facts.biases) if either else f"{product}-{_block(source)}"


def _place(site: str) -> str:
    """Return the site of the reduced model, which has no biases, that holds what a site held."""
    return sites.split(site)[0].removesuffix(".ADD")


def _projection(source: Source, name: str) -> str:
    """Return the last site of a projection before RoPE or the cache."""
    product = f"{name[0]}cur.MUL_MAT"
    is_sum = name.endswith(".ADD")
    return f"{product}-{_block(source)}" if is_sum else sites.summed(product, _block(source), source.facts.biases)


def _input(source: Source, place: str, site: str, columns: slice = slice(None)) -> Input:
    """Return the reference's value of a site at the position, to be given to ``place`` of the reduced model."""
    name = site if sites.split(site)[1] is not None or site in ("embd", "result_norm") else f"{site}-{_block(source)}"
    values = source.nodes.rows(name, source.position, source.position + 1)[:, columns]
    return Input(sites.split(place)[0], (source.position,), np.array(values))


def _cached(source: Source, site: str, slots: Sequence[int], columns: slice) -> Input:
    rows = source.nodes.rows(f"{site}-{_block(source)}", 0, source.position + 1)
    return Input(site, tuple(slots), np.array(rows[list(slots)][:, columns]))


def _scores(source: Source, site: str, heads: Sequence[int]) -> Input:
    value = source.nodes.get(source.error.batch, f"{site}-{_block(source)}")
    rows = value.reshape(source.facts.n_head, -1, value.shape[-1])[list(heads), source.worst.row]
    return Input(site, (source.position,), np.array(rows[:, : source.position + 1]))


def _files(source: Source) -> tuple[ModelFile, ModelFile]:
    return source.reference, source.candidate


def _tensor(source: Source, file: ModelFile, name: str) -> Tensor:
    return file.tensors[_tensor_name(source, file, sites.table(name).weight)]


def _tensor_name(source: Source, file: ModelFile, weight: str) -> str:
    block = sites.split(source.error.site)[1]
    name = weight if block is None else f"blk.{block}.{weight}"
    return "token_embd.weight" if name == "output.weight" and name not in file.tensors else name


def _weights(source: Source, name: str, rows: Sequence[int], n_out: int, low: int | None = None) -> tuple[Rows, Rows]:
    """Return rows of a product's weight from both files, put at ``rows[0] - low`` of a weight of ``n_out`` rows."""
    weight = sites.table(name).weight
    low = rows[0] if low is None else low
    places = tuple(row - low for row in rows)
    n_in = _tensor(source, source.reference, name).shape[1]
    found = [
        _picked(file, _tensor_name(source, file, weight), rows, (n_out, n_in), places, weight)
        for file in _files(source)
    ]
    return found[0], found[1]


def _vector(source: Source, weight: str, columns: slice) -> tuple[Rows, Rows]:
    """Return a part of both files' norm or bias, as float32."""
    found = []
    for file in _files(source):
        values = file.tensors[_tensor_name(source, file, weight)].dequantize().reshape(-1)[columns]
        found.append(Rows(weight, "F32", (len(values),), (0,), np.ascontiguousarray(values, "<f4").tobytes()))
    return found[0], found[1]


def _picked(
    file: ModelFile,
    tensor: str,
    rows: Sequence[int],
    shape: tuple[int, int],
    places: tuple[int, ...],
    called: str = "token_embd.weight",
) -> Rows:
    found = file.tensors[tensor]
    blocks = np.ascontiguousarray(found.rows[list(rows)]).tobytes()
    return Rows(called, found.type, shape, places, blocks)
