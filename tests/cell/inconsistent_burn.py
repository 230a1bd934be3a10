"""Candidates that contradict themselves on one way to their rows only; each runs in a worker of its own."""

from __future__ import annotations

from typing import Any

from parity_lib.engines.burn.engine import Burn

Untyped = Any  # a session of the extension, what it is given and what it answers
WRONG = "norm_weight_1pct@blk.0"


class _Session:
    """Passes everything on to a session of the extension."""

    def __init__(self, session: Untyped) -> None:
        self._session = session

    def append(self, *args: Untyped) -> Untyped:
        return self._session.append(*args)

    def save(self) -> bytes:
        return bytes(self._session.save())

    def restore(self, state: bytes) -> None:
        self._session.restore(state)


class _OtherTokenWhenDecoding(_Session):
    def append(self, rows: Untyped, *args: Untyped) -> Untyped:
        if not args and len(rows) == len(dict(rows)):  # one token of each sequence
            rows = [(sequence, token + 1 if sequence == 1 else token) for sequence, token in rows]
        return self._session.append(rows, *args)


class _LosesABitOfItsState(_Session):
    def save(self) -> bytes:
        state = bytearray(self._session.save())
        state[-1] ^= 0x40  # of the last value of the last sequence in the last block
        return bytes(state)


class _WrongAmongOthers(_Session):
    def append(self, rows: Untyped, *args: Untyped) -> Untyped:
        if not args and len({sequence for sequence, _ in rows[:2]}) == 2 and rows[0][0] > rows[1][0]:
            rows = [rows[0], *((sequence, token + 1) for sequence, token in rows[1:])]
        return self._session.append(rows, *args)


class Decode(Burn):
    """Feeds another token to the second sequence when it decodes."""

    def _new_session(self, n_sequences: int) -> Untyped:
        return _OtherTokenWhenDecoding(super()._new_session(n_sequences))


class Restored(Burn):
    """Saves a state with one bit changed."""

    def _new_session(self, n_sequences: int) -> Untyped:
        return _LosesABitOfItsState(super()._new_session(n_sequences))


class Permuted(Burn):
    """Feeds other tokens where a pass begins with the last sequence."""

    def _new_session(self, n_sequences: int) -> Untyped:
        return _WrongAmongOthers(super()._new_session(n_sequences))


class Threads(Burn):
    """Computes with another weight on another number of threads."""

    def _load(self, n_threads: int) -> Untyped:
        fault = self._fault if n_threads == self._n_threads else WRONG
        return self._extension.Model(self._path, str(self._compute), n_threads, fault)


class Alone(Burn):
    """Computes with another weight where a sequence is alone."""

    def row_digests(self, sequences: Untyped, *args: Untyped, **named: Untyped) -> Untyped:
        if len(sequences) > 1:
            return super().row_digests(sequences, *args, **named)
        whole = self._model
        self._model = self._extension.Model(self._path, str(self._compute), self._n_threads, WRONG)
        try:
            return super().row_digests(sequences, *args, **named)
        finally:
            self._model = whole
