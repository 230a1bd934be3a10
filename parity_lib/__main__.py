"""The process ``parity``, also as ``python -m parity_lib``: clean surroundings first, then the command line."""

from __future__ import annotations

import sys

from parity_lib.base.exit_status import ended, guard_streams
from parity_lib.base.surroundings import restart_clean


def start() -> int:
    """Run the command that the shell gave and return its exit status."""
    guard_streams()
    return ended(_command, program="parity", debug="--debug" in sys.argv[1:])


def _command() -> int:
    restart_clean()
    from parity_lib.cli.app import main  # click, too, must not come from a folder that the shell named

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start())
