"""The map of the library: few arrows between rooms, no circle, and no small module without a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_lib.cli import map as library_map

MOST_ARROWS = 95  # between rooms; one more is a reason to look again at who needs what


@pytest.fixture(scope="module")
def drawn() -> library_map.Map:
    return library_map.draw(Path(__file__).resolve().parents[2])


def test_rooms_do_not_import_in_a_circle(drawn: library_map.Map) -> None:
    assert drawn.circles == ()
    assert drawn.room_circles == ()


def test_few_arrows_lead_from_room_to_room(drawn: library_map.Map) -> None:
    assert 40 < len(drawn.arrows) <= MOST_ARROWS
    assert ("cell", "judge") in drawn.arrows
    assert ("judge", "cell") not in drawn.arrows


def test_small_module_with_one_importer_says_why_it_stands_apart(drawn: library_map.Map) -> None:
    assert drawn.small == ()


def test_circle_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ring"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text("def f() -> None:\n    from ring import b\n    b.g()\n")
    (folder / "b.py").write_text("import ring.a\ndef g() -> None:\n    ring.a.f()\n")
    monkeypatch.setattr(library_map, "PACKAGE", "ring")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    drawn = library_map.draw(tmp_path)
    assert drawn.circles == (("ring.a", "ring.b"),)
    assert drawn.room_circles == (("a", "b"),)
    assert [module for module, _, _ in drawn.small] == ["ring.a", "ring.b"]


def test_map_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert library_map.main([str(Path(__file__).resolve().parents[2]), "--arrows"]) == 0
    printed = capsys.readouterr().out
    assert "0 circles of modules" in printed
    assert "cell -> judge: " in printed
