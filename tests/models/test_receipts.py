"""Receipts of model files: typed, and those of earlier versions are still read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from parity_lib.base.errors import PinError, RecordError
from parity_lib.base.toml_table import fixture_path
from parity_lib.model_file.digest import sha256_file
from parity_lib.models.cache import Receipt, check_digest, read_receipt, write_receipt
from parity_lib.records.model_receipts import Equality, ModelReceipt, TwinReceipt
from parity_lib.records.pins import Recipe

MADE = ("a" * 64, 144811072, "x86_64-GenuineIntel-6-143-1", "0c1e57098bba43ac29e6e3b677cdceebdd22334f")
EQUAL = Equality("widen", "smollm2-135m Q4_1", 7.1e-7, 4.0e-5, 128, 1e-5)
RECIPE = Recipe("quantize", source_id="smollm2-135m-wide", source_quant="F32", ftype="Q4_K_M")
MODEL = ModelReceipt(*MADE, "b" * 64, RECIPE, (EQUAL,))
TWIN = TwinReceipt(*MADE, "c" * 64, "BF16")


def stored(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(receipt_of(path).read_text())
    return data


def receipt_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.receipt.json")


@pytest.mark.parametrize(("receipt", "schema"), [(MODEL, "model_receipt"), (TWIN, "twin_receipt")])
def test_a_receipt_is_read_as_it_was_written_and_matches_its_schema(
    receipt: Receipt, schema: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    assert read_receipt(path) is None
    write_receipt(path, receipt)
    assert read_receipt(path) == receipt
    jsonschema.Draft202012Validator(json.loads(fixture_path(f"schemas/{schema}.json").read_text())).validate(
        stored(path)
    )


def test_a_receipt_with_another_field_or_a_wrong_one_proves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_receipt(path, MODEL)
    whole = stored(path)
    for wrong in (
        whole | {"more": 1},
        whole | {"sha256": "A" * 64},
        whole | {"recipe": whole["recipe"] | {"more": 1}},
        {name: value for name, value in whole.items() if name != "made_from"},
        whole | {"schema": "parity/model-receipt/0"},
        [],
    ):
        receipt_of(path).write_text(json.dumps(wrong))
        assert read_receipt(path) is None
    receipt_of(path).write_bytes(b"\xff{")
    assert read_receipt(path) is None
    with pytest.raises(RecordError, match=r"\$\.kind"):
        write_receipt(path, TwinReceipt(*MADE, "c" * 64, "F16"))


def test_the_receipt_of_a_twin_from_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "twin.gguf"
    path.write_bytes(b"a twin of a file of the user's own: it has no pin")
    own = sha256_file(path)
    write_receipt(path, TwinReceipt(own, *MADE[1:], "c" * 64, "BF16"))
    old = stored(path) | {"schema": "parity/model-receipt/1"}
    receipt_of(path).write_text(json.dumps(old))
    assert read_receipt(path) == TwinReceipt(own, *MADE[1:], "c" * 64, "BF16")
    assert check_digest(path, None, "twin", "quantize") == own


def test_an_unpinned_file_without_a_readable_receipt_is_refused_with_a_next_step(tmp_path: Path) -> None:
    path = tmp_path / "twin.gguf"
    path.write_bytes(b"twin")
    with pytest.raises(PinError, match=r"a receipt beside it.*next: .*remove it and run `parity models prepare`"):
        check_digest(path, None, "twin", "quantize")
    write_receipt(path, TWIN)
    with pytest.raises(PinError, match=f"expected SHA-256 {MADE[0]}; found {sha256_file(path)}"):
        check_digest(path, None, "twin", "quantize")
