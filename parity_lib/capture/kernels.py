"""Capture one prompt and measure each kernel of both engines against float64."""

from __future__ import annotations

import shutil
from pathlib import Path

from parity_lib.capture import cell as steps
from parity_lib.capture.open_engines import open_burn, open_llama
from parity_lib.capture.replay import DECODED
from parity_lib.capture.tokens import prompt_tokens
from parity_lib.compare.kernels import Kernel, kernels
from parity_lib.engines.llama_settings import N_UBATCH
from parity_lib.errors import UsageError
from parity_lib.names import Compute, Settings


def measure_kernels(
    model: str,
    quant: str,
    *,
    isa: str,
    stack: str,
    settings: Settings,
    prompts: str,
    prompt_idx: int,
    n_tokens: int,
    n_threads: int,
    out_dir: Path,
) -> list[Kernel]:
    """Return the kernels of one prompt's first tokens, the last of them decoded one by one.

    Args:
        model: name of a default model, or a file.
        quant: of a default model.
        isa: leg of both engines.
        stack: under the candidate.
        settings: of llama.cpp; its cache is float32 in all that can be captured.
        prompts: a prompts file, or empty.
        prompt_idx: which prompt.
        n_tokens: how many of its tokens, at most a pass of llama.cpp's.
        n_threads: of each engine; 0 is every core.
        out_dir: logs; the capture stands there while it is needed.

    Raises:
        UsageError: there is no such prompt, or it has too few tokens.
        EngineError: an engine refused or died.
    """
    cell = steps.open_cell(
        model=model,
        quant=quant,
        isa=isa,
        stack=stack,
        compute=Compute.GGML,
        prompts=prompts,
        n_threads=n_threads,
        out_dir=str(out_dir),
    )
    nodes = cell.spools / "nodes"
    with open_llama(cell, settings=settings, kind="llama_taps") as engine:
        told = prompt_tokens(cell.suite, cell.facts, engine)
        if not 0 <= prompt_idx < len(told):
            raise UsageError(
                "there is no such prompt", place="prompt", expected=f"0 to {len(told) - 1}", found=prompt_idx
            )
        sequence = told[prompt_idx][: min(n_tokens, N_UBATCH)]
        if len(sequence) <= DECODED:
            raise UsageError("too few tokens", place="tokens", expected=f"more than {DECODED}", found=len(sequence))
        passes = [len(sequence) - DECODED, *[1] * DECODED]
        try:
            engine.call("capture", sequence, passes, nodes)
            with open_burn(cell, "burn_kernels") as candidate:
                progress = cell.progress.step("each op against float64")
                found = candidate.call("kernels", nodes, cell.model_path, progress=progress)
        finally:
            shutil.rmtree(nodes, ignore_errors=True)
    return kernels(found)
