"""``parity finding``: is a known finding present in a checkout of the ndarray fork?"""

from __future__ import annotations

from pathlib import Path

import click

EPILOG = "Exit status: 0 none is present; 1 one is; 2 usage error; 3 a check could not be made."


@click.command(name="finding", epilog=EPILOG)
@click.argument("names", nargs=-1)
@click.option("--source", required=True, type=click.Path(path_type=Path), help="A checkout of AdaWorldAPI/ndarray.")
def command(names: tuple[str, ...], source: Path) -> int:
    """Run the checks of docs/findings.md (all, or those of NAMES) on a checkout, and say what it gives.

    The first run builds a small program on the checkout: half a minute.
    """
    from parity_lib.fork.findings import check

    found = check(source, names)
    for one in found:
        word = {True: "PRESENT", False: "absent", None: "not run"}[one.present]
        click.echo(f"{word:8} {one.name:16} {one.measured}")
    if any(one.present for one in found):
        return 1
    return 3 if any(one.present is None for one in found) else 0
