"""The schemas in git are those of the records, and real records match them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from parity_lib.base.toml_table import fixture_path
from parity_lib.cli.schemas import RECORDS, schema_text

FOLDER = fixture_path("gguf_parity.toml").parent / "schemas"


@pytest.mark.parametrize("name", RECORDS)
def test_the_file_in_git_is_what_the_command_writes(name: str) -> None:
    text = (FOLDER / f"{name}.json").read_text("utf-8")
    assert text == schema_text(RECORDS[name]), "python -m parity_lib.cli.schemas"
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


def test_every_schema_but_that_of_plans_is_written_by_the_command() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {*RECORDS, "plan"}


def test_nothing_may_be_left_out_or_added_and_a_number_may_be_non_finite() -> None:
    schema = json.loads(schema_text(RECORDS["history"]))
    rung = schema["$defs"]["RungHistory"]
    assert rung["required"] == ["outcome", "worst", "limit", "unit"]
    assert rung["additionalProperties"] is False
    validator = jsonschema.Draft202012Validator(schema | {"$ref": "#/$defs/RungHistory"})
    sound = {"outcome": "PARITY", "worst": {"nonfinite": "nan"}, "limit": 1.0, "unit": "x"}
    assert validator.is_valid(sound)
    for wrong in (sound | {"worst": {"nonfinite": "huge"}}, sound | {"more": 1}, sound | {"outcome": "GREEN"}):
        assert not validator.is_valid(wrong)


def test_the_shipped_plans_match_the_schema_of_plans() -> None:
    validator = jsonschema.Draft202012Validator(json.loads((FOLDER / "plan.json").read_text("utf-8")))
    paths = sorted(Path(FOLDER.parent).glob("plans/*.toml"))
    assert len(paths) >= 3
    for path in paths:
        validator.validate(tomllib.loads(path.read_text("utf-8")))
