from __future__ import annotations

import subprocess
import sys

import pytest

from parity_lib import display

HEAVY = ("matplotlib", "nbconvert", "nbformat", "IPython", "PIL")


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys; from parity_lib import display; display.verdict_box, display.rung_table, display.Words; "
    program += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", display.__all__)
def test_every_public_name_exists_and_stays_what_it_is(name: str) -> None:
    first = getattr(display, name)
    assert first is getattr(display, name)
    assert type(first).__name__ != "module"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'verdictbox'"):
        display.verdictbox  # noqa: B018 - the look-up is the test
