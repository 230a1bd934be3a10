"""Small real models for the tests of the engines."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from parity_lib.engines.llamacpp.recipe import host_target
from parity_lib.models.synthetic import Shape, build
from parity_lib.records.pins import load_pins

TINY = Shape(n_layer=2, n_vocab=512, n_ctx_train=1024)
CONTROL = "<|im_end|>"
TEXT_CONTROL, TEXT_BOS = 256, 257  # ids of the text model


@pytest.fixture(scope="session")
def target() -> str:
    """The ISA target of llama.cpp that set-up installs on this machine."""
    return str(host_target(load_pins().llama_cpp))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two-layer llama models without vocabulary, by file type."""
    folder = tmp_path_factory.mktemp("tiny")
    return {quant: build("llama", quant, folder / f"{quant}.gguf", TINY) for quant in ("F32", "Q8_0", "Q4_1", "Q4_K_M")}


def _byte_words() -> list[str]:
    """One printable character for each byte, as byte-level BPE vocabularies spell them (GPT-2's table)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer model with a byte-level vocabulary, one control token, and a BOS that the metadata asks for."""
    path = tmp_path_factory.mktemp("text") / "text.gguf"
    words = [*_byte_words(), CONTROL, "<s>", "he"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([1] * 256 + [3, 3, 1])  # 1 normal, 3 control
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(TEXT_BOS)
    writer.add_eos_token_id(TEXT_CONTROL)
    writer.add_add_bos_token(True)
    shapes = {"token_embd.weight": (len(words), 32), "output_norm.weight": (32,)}
    shapes |= {f"blk.0.{name}_norm.weight": (32,) for name in ("attn", "ffn")}
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{name}.weight": (32, 32) for name in matrices}
    random = np.random.default_rng(1)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape, np.float32) * np.float32(0.2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
