"""The candidate's own run beside the reference's: how far apart they are at each site, and what each part adds to that.

``follow`` replaces nothing: what it sees at a site is the *total* error. ``enter`` and ``lead`` start from the
reference's values and let the candidate compute the rest, so that the difference of two neighbouring runs is what one
layer, or one op, adds to a logit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.base.progress import Progress
from parity_lib.engines import sites
from parity_lib.engines.burn.engine import Burn
from parity_lib.engines.node_file import NodeFile
from parity_lib.numerics.op_error import OpError, op_error
from parity_lib.records.traces import F32, F64

STREAMS, LOGITS = "candidate.l_out.f32", "candidate.logits.f32"


@dataclass(frozen=True, slots=True, eq=False)
class Followed:
    """The candidate's own run against a capture."""

    errors: tuple[OpError, ...]  # total error of each site over the watched positions, in the order of the run
    heads: Mapping[str, F64]  # "Kcur", "Vcur" -> (n_layer, n_head_kv, n watched) mean square error over mean square


@dataclass(frozen=True, slots=True, eq=False)
class Entered:
    """One logit of runs that start from the reference's residual stream, block by block.

    The streams' numbers are norms at the traced position, as shares of the norm of the reference's stream there.
    """

    values: tuple[tuple[str, float], ...]  # (what the candidate was given, its logit), the earliest entry first
    new: tuple[float, ...]  # (n_layer) error that block L makes on the reference's own input
    inherited: tuple[float, ...]  # (n_layer) error after block L that came in with its input
    entered: tuple[float, ...]  # (n_layer) error of what enters block L, as a share of the norm there


class BurnFollow(Burn):
    """``Burn`` that runs beside a capture of the reference."""

    def follow(self, folder: Path, n_head: int, n_head_kv: int) -> Followed:
        """Run burn's own forward pass on a captured sequence and compare every site at the watched positions.

        Leaves ``candidate.l_out.f32``, ``(n_layer, n, n_embd)``, and ``candidate.logits.f32``, ``(n, n_vocab)``, raw
        float32, in the folder.

        Raises:
            EngineError: the candidate's sites are not those of the table, or the capture lacks one.
        """
        folder = Path(folder)
        nodes = NodeFile(folder)
        walk = _Beside(nodes, n_head, n_head_kv)
        with (folder / STREAMS).open("wb") as streams, self._translated():

            def observe(site: str, shape: list[int], raw: bytes) -> None:
                if sites.split(site)[0] == "l_out":
                    streams.write(raw)
                walk.see(site, np.frombuffer(raw, "<f4").reshape(shape))

            logits, _ = self._new_session(1).append([(0, token) for token in nodes.tokens], observe=observe)
        (folder / LOGITS).write_bytes(logits)
        expected = sites.expected(self._facts["n_layer"], self._facts["biases"])
        seen = [error.site for error in walk.errors]
        if seen != expected:
            raise EngineError(
                "the candidate does not pass the sites of the table",
                place=self._path.name,
                expected=f"{len(expected)} sites in their order",
                found=f"{len(seen)}; missing {sorted(set(expected) - set(seen))[:5]}",
            )
        heads = {name: np.stack(parts) for name, parts in walk.heads.items()}
        return Followed(tuple(walk.errors), heads)

    def enter(self, folder: Path, row: int, token: int, *, progress: Progress) -> Entered:
        """Return the logit of ``token`` at position ``row`` of runs entered with the reference's residual stream.

        Needs what ``follow`` left in the folder, and ``embd``, ``l_out``, ``result_norm`` and ``result_output`` of
        every position up to ``row``.
        """
        folder = Path(folder)
        nodes = NodeFile(folder)
        n_layer, n_vocab = self._facts["n_layer"], self.n_vocab()
        logits = np.memmap(folder / LOGITS, "<f4", "r").reshape(-1, n_vocab)
        own = np.memmap(folder / STREAMS, "<f4", "r").reshape(n_layer, len(nodes.tokens), -1)
        values = [("burn alone", float(logits[row, token]))]
        new, inherited, entered = [], [], []
        for layer in range(n_layer):
            stream = nodes.rows("embd" if layer == 0 else f"l_out-{layer - 1}", 0, row + 1)
            logit, after = self._from(layer, stream, nodes.tokens[: row + 1], token)
            values.append((f"entered at block {layer}", logit))
            theirs = nodes.rows(f"l_out-{layer}", row, row + 1)[0]
            made = after[-1].astype(np.float64) - theirs
            came = own[layer, row].astype(np.float64) - theirs - made
            new.append(_share(made, theirs))
            inherited.append(_share(came, theirs))
            at_entry = 0.0 if layer == 0 else _share(own[layer - 1, row].astype(np.float64) - stream[-1], stream[-1])
            entered.append(at_entry)
            progress(layer + 1, n_layer + 2)
        for place, site in enumerate((f"l_out-{n_layer - 1}", "result_norm")):
            given = {site: nodes.rows(site, 0, row + 1)}
            values.append((f"given {site}", self._led(given, nodes.tokens[: row + 1], token)))
            progress(n_layer + 1 + place, n_layer + 2)
        values.append(("llama.cpp", float(nodes.rows("result_output", row, row + 1)[0, token])))
        return Entered(tuple(values), tuple(new), tuple(inherited), tuple(entered))

    def lead(
        self, folder: Path, layer: int, n_head: int, row: int, token: int, *, progress: Progress
    ) -> list[tuple[str, float]]:
        """Return (site, logit) of runs that have the reference's values up to that site of one block, site by site.

        The first is the run that has only the block's input. The capture must hold every site of the block for each
        position up to ``row``.
        """
        nodes = NodeFile(Path(folder))
        tokens = nodes.tokens[: row + 1]
        entry = "embd" if layer == 0 else f"l_out-{layer - 1}"
        names = [site for site in sites.expected(layer + 1, self._facts["biases"]) if site.endswith(f"-{layer}")]
        given: dict[str, F32] = {entry: nodes.rows(entry, 0, row + 1)}
        values = [(entry, self._led(given, tokens, token))]
        for done, site in enumerate(names):
            inner = sites.table(site).inner
            given[site] = self._inside(nodes, site, n_head, row + 1) if inner else nodes.rows(site, 0, row + 1)
            values.append((site, self._led(given, tokens, token)))
            progress(done + 1, len(names))
        return values

    def _inside(self, nodes: NodeFile, site: str, n_head: int, n_rows: int) -> F32:
        """Return a value inside of attention as wide as the reference has it; ``_led`` cuts it to the candidate's."""
        width = max(nodes.get(batch, site).shape[-1] for batch in range(len(nodes.batches)))
        return nodes.inner(site, n_head, width, 0, n_rows)

    def _from(self, layer: int, stream: F32, tokens: list[int], token: int) -> tuple[float, F32]:
        """Return (logit of the last row, residual stream after the block) of a run entered at a block."""
        rows = [(0, fed) for fed in tokens]
        site = f"l_out-{layer}"
        with self._translated():
            raw = np.ascontiguousarray(stream, "<f4").tobytes()
            logits, taken = self._new_session(1).score_from(layer, raw, rows, [site], [len(rows) - 1])
        shape, after = taken[site]
        return float(np.frombuffer(logits, "<f4")[token]), np.frombuffer(after, "<f4").reshape(shape)

    def _led(self, given: Mapping[str, F32], tokens: list[int], token: int) -> float:
        """Return the last row's logit of a run in which some sites have other values."""

        def replace(site: str, shape: list[int], _raw: bytes) -> bytes | None:
            value = given.get(site)
            return None if value is None else _fitted(value, shape).tobytes()

        with self._translated():
            rows = [(0, fed) for fed in tokens]
            logits, _ = self._new_session(1).append(rows, logits=[len(rows) - 1], observe=replace)
        return float(np.frombuffer(logits, "<f4")[token])


class _Beside:
    """Compares each site of the candidate's own run with the capture."""

    def __init__(self, nodes: NodeFile, n_head: int, n_head_kv: int) -> None:
        self._nodes, self._n_head, self._n_head_kv = nodes, n_head, n_head_kv
        self._first, self._n = nodes.first_watched, len(nodes.tokens)
        self.errors: list[OpError] = []
        self.heads: dict[str, list[F64]] = {"Kcur": [], "Vcur": []}

    def see(self, site: str, candidate: F32) -> None:
        row = sites.table(site)
        if row.inner:
            ours = candidate.reshape(self._n_head, self._n, -1)[:, self._first :]
            theirs = self._nodes.inner(site, self._n_head, ours.shape[-1], self._first)
            if row.name != "kqv":
                hidden = np.arange(ours.shape[-1]) > np.arange(self._first, self._n)[:, np.newaxis]
                ours = np.where(hidden, np.float32(0), ours)
        else:
            ours, theirs = candidate[self._first :], self._nodes.rows(site, self._first)
        self.errors.append(op_error(site, row.op, 0, self._first, theirs, ours))
        if row.name in self.heads:
            self.heads[row.name].append(self._by_head(theirs, ours))

    def _by_head(self, reference: F32, candidate: F32) -> F64:
        """Return mean square error over mean square, ``(n_head_kv, n)``; infinite where a value is not finite."""
        theirs = reference.reshape(len(reference), self._n_head_kv, -1).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            difference = candidate.reshape(theirs.shape) - theirs
            ratio = np.square(difference).sum(-1) / np.square(theirs).sum(-1)
        by_head: F64 = np.nan_to_num(ratio, nan=np.inf, posinf=np.inf).T
        return by_head


def _fitted(value: F32, shape: list[int]) -> F32:
    """Return a value in the candidate's shape; inside of attention keys are cut or padded with zeros."""
    if value.ndim == 3:
        width = shape[1]
        out = np.zeros((*value.shape[:2], width), np.float32)
        n = min(width, value.shape[2])
        out[:, :, :n] = value[:, :, :n]
        value = out
    return np.ascontiguousarray(value, "<f4").reshape(shape)


def _share(vector: F64, of: F32) -> float:
    norm = float(np.linalg.norm(of.astype(np.float64)))
    size = float(np.linalg.norm(vector))
    return size / norm if norm > 0 else (0.0 if size == 0 else float("inf"))
