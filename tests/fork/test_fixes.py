"""Fixes: written into a checkout of the pinned revision, named place by named place, and undone by git.

The fork is not at hand, so a made-up source has a function of each name; where a stack was built from the real one, its
kept copy is repaired too, and the checks are run on it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from parity_lib.base.errors import EngineError, PinError, UsageError
from parity_lib.cli.app import main
from parity_lib.engines.burn import sources, stacks
from parity_lib.fork import fixes, source
from parity_lib.fork.findings import CHECKS, check
from parity_lib.fork.fixes import Edit, load_fixes, named, repair, repair_checkout
from parity_lib.records.pins import load_pins

OLD = "    // a brace in a comment {\n    let text = \"}\";\n    let brace = '}';\n    if true { old() }\n"


def git(checkout: Path, *words: str) -> str:
    own = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", "-C", checkout, *own, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A git checkout with a function, or a constant, of each name that a fix looks for."""
    checkout = tmp_path / "fork"
    texts: dict[str, str] = {}
    for fix in named(()):
        for edit in fix.edits:
            inside = "".join(f"    use({edit.numbers[0]});\n" for _ in range(edit.times)) if edit.numbers else OLD
            one = f"pub fn {edit.name}(x: i64) -> i64 {{\n{inside}}}\n\n"
            if edit.keyword == "const":
                one = f"const {edit.name}: i64 = {edit.numbers[0]}; // {edit.numbers[0]} stays here\n\n"
            texts[edit.file] = texts.get(edit.file, "") + one
    for path, text in texts.items():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text(text)
    (checkout / "README.md").write_text("made up\n")
    git(tmp_path, "init", "--quiet", str(checkout))
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "all")
    return checkout


@pytest.fixture
def head(made: Path) -> str:
    return git(made, "rev-parse", "HEAD").strip()


def test_every_fix_is_written_once_at_its_place_and_git_undoes_it(made: Path, head: str) -> None:
    every = [fix.name for fix in named(())]
    assert [fix.name for fix in repair_checkout(made, revision=head)] == every
    changed = set(git(made, "diff", "--name-only").split())
    assert changed == {edit.file for fix in named(()) for edit in fix.edits}
    assert repair_checkout(made, revision=head) == []
    text = (made / "src/simd.rs").read_text()
    assert "old()" not in text
    assert text.endswith("}\n\n")
    permission = (made / "src/simd_amx.rs").read_text()
    assert "const SYS_PRCTL: i64 = 158; // 157 stays here" in permission
    git(made, "checkout", ".")
    assert repair_checkout(made, ["vnni-tail"], head) == [load_fixes()["vnni-tail"]]


def test_fixes_may_come_one_after_another_and_in_any_order(made: Path, head: str, tmp_path: Path) -> None:
    at_once = tmp_path / "at-once"
    shutil.copytree(made, at_once)
    repair_checkout(at_once, ["gguf-q6_k", "tile-config", "tile-bytes"], head)
    for name in ("tile-bytes", "gguf-q6_k", "tile-config"):
        assert [fix.name for fix in repair_checkout(made, [name], head)] == [name]
    assert git(made, "diff") == git(at_once, "diff")


@pytest.mark.parametrize("path", ["README.md", "src/simd.rs"])
def test_a_checkout_with_changes_of_its_own_is_refused_and_left_alone(path: str, made: Path, head: str) -> None:
    with (made / path).open("a") as file:
        file.write("// mine\n")
    before = git(made, "diff")
    with pytest.raises(PinError, match=rf"changes of its own.*found {re.escape(path)}.*stash"):
        repair_checkout(made, revision=head)
    assert git(made, "diff") == before


def test_another_revision_and_a_folder_without_git_are_refused(made: Path, head: str, tmp_path: Path) -> None:
    assert main(["finding", "fix", "exp-range", "--source", str(made)]) == 3
    with pytest.raises(PinError, match=f"expected {fixes.pinned_revision()}; found {head}"):
        repair_checkout(made)
    shutil.rmtree(made / ".git")
    with pytest.raises(UsageError, match="where git can undo them"):
        repair_checkout(made, revision=head)
    with pytest.raises(UsageError, match=r"there is no fix of this name.*exp-range"):
        repair_checkout(tmp_path, ["exp"], head)


def test_a_place_that_is_not_as_it_was_is_an_error(made: Path) -> None:
    path = made / "src/simd_amx.rs"
    path.write_text(path.read_text().replace("SYS_PRCTL: i64 = 157", "SYS_PRCTL: i64 = 156"))
    with pytest.raises(EngineError, match=r"const SYS_PRCTL.*expected 157 1 times; found 0 times"):
        repair(made, ["amx-permission"])
    path.write_text("fn vnni_dot_u8_i8() {}\nfn vnni_dot_u8_i8() {}\n")
    with pytest.raises(EngineError, match=r"fn vnni_dot_u8_i8.*expected it once; found 2 times"):
        repair(made, ["vnni-tail"])
    path.unlink()
    with pytest.raises(EngineError, match="a file of the fork is missing"):
        repair(made, ["vnni-tail"])


def test_numbers_are_whole_and_braces_in_texts_do_not_count() -> None:
    edit = Edit("a.rs", "fn", "f", numbers=("0x08", "0x01"), times=1)
    text = 'fn f() { say("}"); x(0x08, 0x081, 1.0x08); }\nfn g() { 0x08 }\n'
    assert not edit.done(text)
    changed = edit.apply(text)
    assert changed == 'fn f() { say("}"); x(0x01, 0x081, 1.0x08); }\nfn g() { 0x08 }\n'
    assert edit.done(changed)


def test_all_but_one_leaves_that_one_out(
    made: Path, head: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fixes, "pinned_revision", lambda: head)
    assert main(["finding", "fix", "--all-but", "reciprocal", "--source", str(made)]) == 0
    said = capsys.readouterr().out
    assert "fixed exp-range: range and precision" in said
    assert "      src/simd_amx.rs: 157 becomes 158 in const SYS_PRCTL" in said
    assert "fixed reciprocal" not in said
    assert [fix.name for fix in repair_checkout(made)] == ["reciprocal"]
    assert main(["finding", "fix", "vnni-tail", "--all-but", "exp-range", "--source", str(made)]) == 2


def test_each_fix_belongs_to_a_check_and_each_stack_to_known_fixes() -> None:
    assert set(load_fixes()) <= set(CHECKS)
    pins = load_pins()
    fixed = {stack: pin.fixes for stack, pin in pins.stacks.items() if pin.fixes}
    assert set(fixed) == {"overlay-fixed", "spine-amx"}
    for stack, names in fixed.items():
        assert set(names) <= set(load_fixes())
        without = pins.stack(f"{stack}-without-{names[0]}")
        assert without.fixes == names[1:]
        assert sources.manifest(without.id) == sources.manifest(stack)
        assert stacks.key(without) != stacks.key(pins.stack(stack))
    with pytest.raises(UsageError, match="the stack overlay has no fix 'exp-range'"):
        pins.stack("overlay-without-exp-range")


@pytest.mark.slow
@pytest.mark.engine
def test_the_fork_is_right_after_its_fixes_where_a_stack_was_built_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = load_pins().stack("overlay").source
    assert pin is not None
    kept = source.kept(pin, stacks.stacks_dir() / "sources")
    if kept is None:
        monkeypatch.delenv("PARITY_FORK_SOURCE", raising=False)
        assert main(["stack", "build", "overlay"]) == 3
        assert "no source of the fork at hand" in capsys.readouterr().err
        return
    tree = tmp_path / "fork"
    shutil.copytree(kept, tree, symlinks=True)
    repair(tree, ())
    found = {one.name: one for one in check(tree)}
    assert {name: one.measured for name, one in found.items() if one.present} == {}
    assert found["exp-place"].measured == "202 numbers have the same bits at both places"
    assert found["tile-bytes"].measured == "4 sequences are right"
    assert all("100.0% of" in found[f"gguf-{kind}"].measured for kind in ("q4_0", "q4_k", "q6_k", "q8_0"))
