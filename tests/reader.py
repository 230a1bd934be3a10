"""The candidate's reader in a process of its own: a path a line on stdin, what it says of the file on stdout."""

from __future__ import annotations

import json
import sys

from parity_lib.engines.burn.engine import load


def main() -> None:
    """Answer until stdin ends: the refusal, or "" where the file is taken."""
    extension, _ = load("crates-io")
    for line in sys.stdin:
        said = ""
        try:
            extension.Model(json.loads(line), "f32", 1)
        except extension.BurnError as error:
            said = str(error)
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
