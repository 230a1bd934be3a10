"""The fork's source: the same content from a checkout, a git directory and a clone; anything else is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from parity_lib.base.errors import EngineError, PinError
from parity_lib.fork import source
from parity_lib.records.stack_pins import SourcePin

FILES = {"Cargo.toml": "[package]\n", "src/lib.rs": "pub fn f() {}\n", "crates/a/src/ops/x.rs": "// x\n"}


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with files, a dangling link into a submodule's folder, and weights that nobody needs."""
    folder = tmp_path / "checkout"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "src" / "linked.rs").symlink_to("../upstream/lib.rs")
    (folder / "src" / "shard.bgz7").write_bytes(b"weights")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "one")
    return folder


def pin_of(checkout: Path) -> SourcePin:
    return SourcePin("https://example.org/fork", git(checkout, "rev-parse", "HEAD"), source.digest(checkout))


def test_every_form_of_the_source_gives_the_same_tree(checkout: Path, tmp_path: Path) -> None:
    pin = pin_of(checkout)
    (checkout / "target").mkdir()
    (checkout / "target" / "built.rlib").write_text("no source")
    (checkout / "upstream").mkdir()  # a submodule that is there is left out, as one that is not
    (checkout / "upstream" / "lib.rs").write_text("// submodule")
    for given in (checkout, checkout / ".git", checkout.as_uri()):
        tree = source.bring(str(given), pin, tmp_path / "kept")
        assert tree.name == pin.sha256[:12]
        files = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if not path.is_dir())
        assert files == sorted([*FILES, "src/linked.rs"])
        assert (tree / "src" / "linked.rs").readlink() == Path("../upstream/lib.rs")
        assert source.kept(pin, tmp_path / "kept") == tree


def test_a_git_directory_without_its_weights_is_enough_and_without_a_file_it_is_named(checkout: Path) -> None:
    pin = pin_of(checkout)
    for name in ("src/shard.bgz7", "src/lib.rs"):
        blob = git(checkout, "rev-parse", f"HEAD:{name}")
        place = checkout / ".git" / "objects" / blob[:2] / blob[2:]
        place.chmod(0o600)
        place.unlink()
        if name.endswith(".bgz7"):
            assert source.bring(str(checkout / ".git"), pin, checkout.parent / "kept").is_dir()
        else:
            with pytest.raises(EngineError, match=f"lacks a file of the revision.*{blob}.*a checkout as --source"):
                source.bring(str(checkout / ".git"), pin, checkout.parent / "other")
    assert not list((checkout.parent / "other").iterdir())  # nothing half brought


def test_the_digest_sees_content_names_and_links(checkout: Path) -> None:
    before = source.digest(checkout)
    seen = {before}
    (checkout / "src" / "lib.rs").write_text("pub fn f() { }\n")
    seen.add(source.digest(checkout))
    (checkout / "src" / "lib.rs").rename(checkout / "src" / "lab.rs")
    seen.add(source.digest(checkout))
    (checkout / "src" / "linked.rs").unlink()
    (checkout / "src" / "linked.rs").write_text("../upstream/lib.rs")
    seen.add(source.digest(checkout))
    assert len(seen) == 4


def test_other_content_than_the_pinned_is_refused_and_what_was_changed_later_is_not_used(
    checkout: Path, tmp_path: Path
) -> None:
    pin = pin_of(checkout)
    kept = source.bring(str(checkout), pin, tmp_path / "kept")
    (checkout / "src" / "lib.rs").write_text("// changed\n")
    with pytest.raises(PinError, match=r"not the pinned one.*expected revision .*next: check out the pinned revision"):
        source.bring(str(checkout), pin, tmp_path / "kept")
    assert source.kept(pin, tmp_path / "kept") == kept  # the good one is still there
    (kept / "src" / "lib.rs").write_text("// changed here\n")
    assert source.kept(pin, tmp_path / "kept") is None


def test_what_is_no_source_is_named(checkout: Path, tmp_path: Path) -> None:
    pin = pin_of(checkout)
    with pytest.raises(EngineError, match="git failed"):
        source.bring(str(tmp_path / "nothing"), pin, tmp_path / "kept")
    unknown = SourcePin(pin.repository, "0" * 40, pin.sha256)
    with pytest.raises(EngineError, match="git failed"):
        source.bring(os.fspath(checkout / ".git"), unknown, tmp_path / "kept")
