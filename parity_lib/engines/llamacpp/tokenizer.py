"""Text to token ids and back, by llama.cpp's own tokenizer."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from parity_lib.base.errors import EngineError, ModelFileError
from parity_lib.engines.llamacpp.abi import Ctypes, Library, load
from parity_lib.engines.worker.protocol import OnOneFile, check_ids

VOCAB_NONE = 0  # enum llama_vocab_type: token ids without text; asking it for text aborts the process
SPECIAL_ROOM = 16  # ids added around a text: BOS, EOS and the like


class Vocabulary:
    """The vocabulary of a loaded model.

    Args:
        library: the loaded reference.
        model: ``llama_model *``; must outlive this object.
        name: of the model file, for error messages.
    """

    def __init__(self, library: Library, model: Ctypes, name: str) -> None:
        self._library, self._api, self._name = library, library.api, name
        self._vocab = self._api.llama_model_get_vocab(model)
        self.n_tokens = int(self._api.llama_vocab_n_tokens(self._vocab))

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``, with BOS and EOS as the metadata says; special tokens in the text stay text.

        Raises:
            EngineError: the file has no vocabulary, or the text is not valid Unicode.
        """
        self._require_text()
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise EngineError(
                "the text is not valid Unicode",
                place=self._name,
                expected="no lone surrogates",
                found=error,
                next_step="correct the prompt's text",
            ) from error
        room = len(data) + SPECIAL_ROOM  # a token stands for at least one byte
        ids = (self._api.llama_token * room)()
        n = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, True, False)
        if n < 0:
            raise EngineError(
                "llama.cpp could not tokenise the text",
                place=self._name,
                expected=f"at most {room} tokens",
                found=f"{-n}; {self._library.log.complaints()}",
                next_step="see the worker's log",
            )
        return list(ids[:n])

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes of each token; those of a control token are its name.

        Raises:
            EngineError: the file has no vocabulary, or an id is outside of it.
        """
        self._require_text()
        check_ids(ids, self.n_tokens, self._name)
        return [self._piece(token, ctypes.create_string_buffer(64)) for token in ids]

    def _piece(self, token: int, buffer: ctypes.Array[ctypes.c_char]) -> bytes:
        n = self._api.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
        if n < 0:  # the negated size that it needs
            return self._piece(token, ctypes.create_string_buffer(-n))
        return buffer.raw[:n]

    def _require_text(self) -> None:
        if self._api.llama_vocab_type(self._vocab) == VOCAB_NONE:
            raise EngineError(
                "the model file has no vocabulary",
                place=self._name,
                expected="a tokenizer.ggml.model that is not 'none'",
                found="token ids without text",
                next_step="give token ids instead of text",
            )


class LlamaVocabulary(OnOneFile):
    """The engine kind ``llama_vocabulary``: llama.cpp with ``vocab_only``, so that even an 8B file opens in a second.

    Answers ``n_vocab``, ``tokenize`` and ``token_bytes`` as the engine ``llama_cpp`` does; no settings, no target: the
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
        super().__init__(path)
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
        """Return the bytes of each token; see ``Vocabulary.token_bytes``."""
        return self._open().token_bytes(ids)

    def _free(self) -> None:
        self._library.api.llama_model_free(self._model)
        self._model = None

    def _open(self) -> Vocabulary:
        self._require_open()
        return self._vocabulary

    def _load(self) -> Ctypes:
        api, log = self._library.api, self._library.log
        log.mark()
        params = api.llama_model_default_params()
        params.vocab_only = True
        model = api.llama_model_load_from_file(os.fsencode(self._path), params)
        if not model:
            raise ModelFileError(
                "llama.cpp cannot load the model file's vocabulary",
                place=self._path,
                expected="a whole GGUF file with a vocabulary that llama.cpp supports",
                found=log.complaints(),
                next_step="verify the file's hash, and fetch or make it again",
            )
        return model
