"""Score the same tokens by both engines on two ISA targets of one machine; split the deltas by engine and target."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from msgspec import structs

from parity_lib.base.errors import EngineError, PinError, UsageError
from parity_lib.cell import request as folder
from parity_lib.cell.isa_machine import burn_of
from parity_lib.cell.open_engines import open_llama
from parity_lib.cell.reference import Reference, generate, score
from parity_lib.cell.request import Cell, open_cell
from parity_lib.engines.llamacpp.isa_build import target_folder
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.isa_split import Split, split_rows
from parity_lib.judge.t7_isa import prove
from parity_lib.records.isa_evidence import Evidence
from parity_lib.records.traces import F32

DEPLOYED, TWIN = "as deployed", "F32 twin"


@dataclass(frozen=True, slots=True)
class TargetSplit:
    """What two ISA targets and two engines gave."""

    model: str
    quant: str
    targets: tuple[str, str]
    splits: tuple[Split, ...]
    observed: dict[str, str] = field(default_factory=dict)  # ISA target -> what was seen of the candidate
    absent: str = ""  # why there is no split

    def lines(self) -> list[str]:
        """Return it as lines of text."""
        head = f"{self.model} {self.quant}: {self.targets[0]} against {self.targets[1]}"
        if self.absent:
            return [f"{head}: not possible here: {self.absent}"]
        lines = [f"{head}; burn observed: {', '.join(f'{k} {v}' for k, v in self.observed.items())}"]
        for split in self.splits:
            shares = f"engine {split.engine:.1%}, ISA target {split.target:.1%}, both {split.both:.1%}"
            lines.append(f"reference on the file {split.file}, {split.positions:,} positions: {shares}")
            lines += [
                f"  {p.name:20} rms/std {p.rms_over_std:.3g}  max {p.max_abs:.3g} logits"
                f"  top-1 equal {p.top1_share:.2%}  bit-equal {p.bit_equal:,}"
                for p in split.pairs
            ]
        return lines


def measure_split(
    model: str, quant: str, targets: Sequence[str], *, out_dir: Path, prompts: str = "", n_threads: int = 0
) -> TargetSplit:
    """Return the split of one model's deltas.

    Args:
        model: an id of the pins, or the path of any GGUF file.
        quant: of that id.
        targets: the two ISA targets; the reference generates on the first.
        out_dir: for logs and rows.
        prompts: a prompts file of the user's own.
        n_threads: of each engine; 0 is every core.

    Raises:
        UsageError: there are not two ISA targets.
        EngineError, PinError: an engine failed.
    """
    if len(set(targets)) != 2:
        raise UsageError(
            "a split needs two ISA targets", place="--targets", expected="two of them", found=", ".join(targets)
        )
    first, second = targets
    cell = open_cell(model=model, quant=quant, isa=first, prompts=prompts, out_dir=out_dir, n_threads=n_threads)
    try:
        for target in targets:
            target_folder(cell.pins.llama_cpp, target)
        return _measured(cell, replace(cell, id=structs.replace(cell.id, isa=second)))
    except PinError as error:
        return TargetSplit(cell.id.model, cell.id.quant, (first, second), (), absent=str(error))
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)
        folder.let_go(cell.out_dir)


def _measured(first: Cell, second: Cell) -> TargetSplit:
    reference = generate(first)
    observed: dict[str, str] = {}
    burn = [_burn(cell, reference, observed) for cell in (first, second)]
    deployed = [reference.rows.open(), _llama(second, second.model_path, reference, "second")]
    twins = [_llama(cell, cell.twin_path, reference, f"twin-{cell.id.isa}") for cell in (first, second)]
    splits = tuple(
        split_rows(name, [rows[0], burn[0], rows[1], burn[1]]) for name, rows in ((DEPLOYED, deployed), (TWIN, twins))
    )
    targets = (first.id.isa, second.id.isa)
    return TargetSplit(first.id.model, first.id.quant, targets, splits, observed)


def _llama(cell: Cell, path: Path, reference: Reference, name: str) -> F32:
    with open_llama(cell, path) as engine:
        return score(cell, engine, reference, name, f"llama.cpp, {cell.id.isa}, scores").open()


def _burn(cell: Cell, reference: Reference, observed: dict[str, str]) -> F32:
    """Return the candidate's rows on an ISA target; raise unless its own samples show that ISA target."""
    target = cell.id.isa
    settings = burn_of(cell.pins, target, cell.candidate_path, cell.n_threads)
    with Worker("burn", settings, log=cell.log("burn")) as engine:
        rows = score(cell, engine, reference, f"burn-{target}", f"burn, {target}, scores").open()
        evidence: Evidence = engine.call("evidence")
        proof = prove(evidence)
        if not proof.proven:
            proof = prove(engine.call("prove_isa", reference.sequences, cell.spools))
    if not proof.proven:
        raise EngineError(
            "the candidate did not run the ISA target", place=f"isa {target}", expected=target, found=proof.reason
        )
    observed[target] = proof.observed
    return rows
