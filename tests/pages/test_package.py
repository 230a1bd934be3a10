from __future__ import annotations

import subprocess
import sys

import pytest

from parity_lib import pages

HEAVY = ("matplotlib", "nbconvert", "nbformat", "IPython", "PIL")


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = (
        "import sys; from parity_lib import pages as display; display.verdict_box, display.rung_table, display.Words; "
    )
    program += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists_and_stays_what_it_is() -> None:
    assert len(pages.__all__) > 40
    first = {name: getattr(pages, name, None) for name in pages.__all__}
    assert [name for name, value in first.items() if value is None] == []
    assert [name for name, value in first.items() if value is not getattr(pages, name)] == []
    assert [name for name, value in first.items() if type(value).__name__ == "module"] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'verdictbox'"):
        pages.verdictbox  # noqa: B018 - the look-up is the test
