"""``parity finding``: is a known finding present in a checkout of the ndarray fork, and what repairs it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

EPILOG = "Exit status: 0 no finding is present; 1 at least one is; 2 usage error; 3 a check could not be made."
FIX_EPILOG = "Exit status: 0 the fixes are in the checkout; 2 usage error; 3 not a checkout of the pinned revision."


class _CheckUnlessNamed(click.Group):
    """A group whose words are those of ``check`` where the first one is no command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[:1]
        if first and first[0] not in self.commands and first[0] not in ctx.help_option_names:
            args = ["check", *args]
        return super().parse_args(ctx, args)


_source = click.option(
    "--source", required=True, type=click.Path(path_type=Path), help="A checkout of AdaWorldAPI/ndarray."
)


@click.group(name="finding", cls=_CheckUnlessNamed)
def group() -> None:
    """Check a checkout of the ndarray fork for the findings of docs/findings.md, and repair them there.

    `parity finding [NAMES] --source DIR` is short for `parity finding check`.
    """


@group.command(name="check", epilog=EPILOG)
@click.argument("names", nargs=-1)
@_source
def check_command(names: tuple[str, ...], source: Path) -> int:
    """Check whether the findings of docs/findings.md (all, or NAMES) are present in a checkout, and print the numbers.

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


@group.command(name="fix", epilog=FIX_EPILOG)
@click.argument("names", nargs=-1)
@click.option("--all-but", default="", metavar="NAME", help="Every fix but this one.")
@_source
def fix_command(names: tuple[str, ...], all_but: str, source: Path) -> int:
    """Write the fixes of NAMES (all by default) into a git checkout of the pinned revision.

    A checkout with other changes is refused. `git diff` shows what was written, `git checkout .` undoes it.
    """
    from parity_lib.fork.fixes import named, repair_checkout

    if names and all_but:
        raise click.UsageError("give NAMES or --all-but NAME")
    wanted: Sequence[str] = names
    if all_but:
        named([all_but])
        wanted = [fix.name for fix in named(()) if fix.name != all_but]
    added = repair_checkout(source, wanted)
    for fix in added:
        click.echo(f"fixed {fix.name}: {fix.why}")
        for edit in fix.edits:
            click.echo(f"      {edit.words()}")
    click.echo(
        f"{len(added)} of {len(named(wanted))} fixes written, the others were there; check: parity finding check"
    )
    return 0
