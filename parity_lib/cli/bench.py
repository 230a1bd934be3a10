"""Print speed as ratios of one run: ``make bench``, or ``python -m parity_lib.cli.bench [pass] [trace] [sgemm]``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from parity_lib.base.errors import UsageError
from parity_lib.base.exit_status import OK, ended, guard_streams
from parity_lib.base.surroundings import restart_clean

PARTS = ("pass", "trace", "sgemm")


def main(arguments: Sequence[str]) -> int:
    """Print the table; arguments choose parts of it (default: all). Return the exit status."""
    return ended(lambda: _print(arguments or PARTS), program="bench")


def _print(parts: Sequence[str]) -> int:
    for part in parts:
        if part not in PARTS:
            raise UsageError("there is no such part", place=part, expected=f"one of {', '.join(PARTS)}")
    from parity_lib.cli.speed import ROUNDS, rows
    from parity_lib.engines import machine

    n_threads = len(os.sched_getaffinity(0))
    sys.stdout.write(f"{machine.machine_class()}, {n_threads} threads, best of {ROUNDS}\n")
    for row in rows(parts, n_threads):
        sys.stdout.write(f"{row}\n")
        sys.stdout.flush()
    return OK


if __name__ == "__main__":
    guard_streams()
    restart_clean()
    sys.exit(main(sys.argv[1:]))
