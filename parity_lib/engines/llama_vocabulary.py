"""The reference's tokenizer alone: a model file's vocabulary without its weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from parity_lib.engines.llama_abi import Ctypes, load
from parity_lib.engines.llama_text import Vocabulary
from parity_lib.errors import EngineError, ModelFileError


class LlamaVocabulary:
    """The engine kind ``llama_vocabulary``: llama.cpp with ``vocab_only``, so that even an 8B file opens in a second.

    Answers ``n_vocab``, ``tokenize`` and ``token_bytes`` as the engine ``llama_cpp`` does; no settings, no leg: the
    tokenizer has neither.

    Args:
        path: a GGUF file, with or without tensors.
        n_threads: taken so that every engine is started alike; unused.

    Raises:
        PinError: the library is not the pinned build.
        ModelFileError: the file is missing or llama.cpp cannot load it.
    """

    def __init__(self, path: Path | str, n_threads: int = 1) -> None:
        del n_threads
        self._path = Path(path)
        self._library = load()
        self._model: Ctypes = self._load()
        self._vocabulary = Vocabulary(self._library, self._model, self._path.name)

    def n_vocab(self) -> int:
        """Return the number of tokens."""
        return self._open().n_tokens

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``; see ``Vocabulary.tokenize``."""
        return self._open().tokenize(text)

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes that each id stands for; see ``Vocabulary.token_bytes``."""
        return self._open().token_bytes(ids)

    def close(self) -> None:
        """Free the vocabulary. Every other call is refused from now on."""
        if self._model is not None:
            self._library.api.llama_model_free(self._model)
            self._model = None

    def _open(self) -> Vocabulary:
        if self._model is None:
            raise EngineError("the engine is closed", place=self._path.name, next_step="open the model again")
        return self._vocabulary

    def _load(self) -> Ctypes:
        if not self._path.is_file():
            raise ModelFileError(
                "there is no such model file", place=self._path, expected="a GGUF file", next_step="correct the path"
            )
        api, log = self._library.api, self._library.log
        log.mark()
        params = api.llama_model_default_params()
        params.vocab_only = True
        model = api.llama_model_load_from_file(os.fsencode(self._path), params)
        if not model:
            raise ModelFileError(
                "llama.cpp cannot load the model file's vocabulary",
                place=self._path,
                expected="a whole GGUF file with a vocabulary that llama.cpp knows",
                found=log.complaints(),
                next_step="verify the file's hash, and fetch or make it again",
            )
        return model
