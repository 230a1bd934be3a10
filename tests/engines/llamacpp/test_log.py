"""llama.cpp's words: whole lines, warnings first, debug left out."""

from __future__ import annotations

import pytest

from parity_lib.engines.llamacpp.abi import Log

pytestmark = pytest.mark.engine


def test_a_line_in_pieces_becomes_one_line() -> None:
    log = Log()
    log.write(2, b"loading", None)
    log.write(5, b" .", None)
    log.write(5, b".\n", None)
    log.write(2, b"done\n", None)
    assert log.text() == "loading ..\ndone"


def test_warnings_and_errors_are_quoted_before_anything_else(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    log.write(2, b"some information\n", None)
    assert "some information" in log.complaints()
    log.write(1, b"debug\n", None)
    log.write(4, b"invalid magic \xff\n", None)
    assert log.complaints() == "llama.cpp's log:\ninvalid magic \ufffd"
    assert capsys.readouterr().err == "some information\ninvalid magic \ufffd\n"


def test_a_mark_forgets_what_was_said_before() -> None:
    log = Log()
    log.write(3, b"an old warning", None)
    log.mark()
    assert log.complaints() == "llama.cpp logged no message"
    log.write(2, b"new\n", None)
    assert log.text() == "new"
