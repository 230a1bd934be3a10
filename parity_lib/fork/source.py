"""The fork's source: taken from a checkout or a git directory, held to its pin by content, kept in the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from parity_lib.base.errors import EngineError, PinError
from parity_lib.base.files import FREE_CACHE, replacing
from parity_lib.records.stack_pins import SourcePin

LEFT_OUT = (".git", "target", "upstream")  # folders: the repository itself, build output, the submodule
WEIGHTS = ".bgz7"  # weight files of the fork's experiments: hundreds of megabytes that no build reads
TREE, LINK = "040000", "120000"
SUBMODULE = "160000"


def bring(source: str, pin: SourcePin, folder: Path) -> Path:
    """Copy the pinned source into ``folder``, under a name made of its content, and return where it lies.

    Args:
        source: a checkout, a git directory (bare or not), or what ``git clone`` takes.
        pin: revision and digest. A git directory gives the revision; a checkout is taken as it lies.
        folder: gets ``<first digits of the digest>/``.

    Raises:
        EngineError: git is missing or failed, or the checkout cannot be read.
        PinError: the content is not the pinned one.
    """
    place = folder / pin.sha256[:12]
    if kept(pin, folder) is None:
        with replacing(place, kind=EngineError, what="cannot be copied", next_step=FREE_CACHE, sync=False) as tree:
            _take(source, pin, tree)
    else:  # it stays with its file times, and cargo compiles nothing again
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
            _take(source, pin, Path(part))
    return place


def _take(source: str, pin: SourcePin, tree: Path) -> None:
    """Write the source into ``tree`` and compare it with its pin."""
    given = Path(source)
    if _is_git_dir(given):
        _export(given, pin.revision, tree)
    elif given.is_dir():
        _copy(given, tree)
    else:
        with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".part-") as clone:
            _git("clone", "--quiet", "--bare", source, clone)
            _export(Path(clone), pin.revision, tree)
    check(tree, pin, source)


def kept(pin: SourcePin, folder: Path) -> Path | None:
    """Return the folder of the pinned source from an earlier ``bring``, or None if there is none or it was changed."""
    tree = folder / pin.sha256[:12]
    return tree if tree.is_dir() and digest(tree) == pin.sha256 else None


def check(tree: Path, pin: SourcePin, source: str) -> None:
    """Raise ``PinError`` unless ``tree`` holds the pinned content."""
    found = digest(tree)
    if found != pin.sha256:
        raise PinError(
            "the fork's source is not the pinned one",
            place=source,
            expected=f"revision {pin.revision[:12]}, content {pin.sha256}",
            found=f"content {found}",
            next_step="check out the pinned revision; to judge another one, write its revision and this content into "
            "the stack's `source` in fixtures/gguf_parity.toml",
        )


def digest(tree: Path) -> str:
    """Return the SHA-256 over the files of a source tree, in hex.

    Sorted by path with ``/`` between parts; for each the path, a zero byte, ``link`` or ``file``, a zero byte, the
    length of the content in decimal digits, a zero byte, the content. A link's content is the path that it names.
    """
    total = hashlib.sha256()
    for name, path in sorted(_files(tree)):
        kind = "link" if path.is_symlink() else "file"
        content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        total.update(f"{name}\0{kind}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


def _files(tree: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path with ``/``, file) of everything that counts."""
    for folder, folders, names in os.walk(tree):
        linked = [name for name in folders if (Path(folder) / name).is_symlink()]
        folders[:] = [name for name in folders if name not in LEFT_OUT and name not in linked]
        for name in [*names, *linked]:
            path = Path(folder) / name
            if not name.endswith(WEIGHTS) and name not in LEFT_OUT:
                yield path.relative_to(tree).as_posix(), path


def _copy(checkout: Path, tree: Path) -> None:
    for name, path in _files(checkout):
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target, follow_symlinks=False)


def _is_git_dir(place: Path) -> bool:
    return (place / "objects").is_dir() and (place / "HEAD").is_file()


def _export(git_dir: Path, revision: str, tree: Path) -> None:
    """Write the files of a revision; weight files are left out, and may be absent from the repository."""
    at = ["--git-dir", str(git_dir)]
    listing = _git(*at, "ls-tree", "-r", "-z", "--full-tree", revision).decode()
    wanted = []
    for line in filter(None, listing.split("\0")):
        facts, _, name = line.partition("\t")
        mode, _, blob = facts.split()
        left_out = mode == SUBMODULE or name.endswith(WEIGHTS) or set(name.split("/")) & set(LEFT_OUT)
        if not left_out:
            wanted.append((mode, blob, name))
    contents = _blobs(git_dir, [blob for _, blob, _ in wanted])
    for (mode, _, name), content in zip(wanted, contents, strict=True):
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode == LINK:
            target.symlink_to(os.fsdecode(content))
        else:
            target.write_bytes(content)


def _blobs(git_dir: Path, names: list[str]) -> Iterator[bytes]:
    """Yield the content of each blob. The answer is a head ``name type size``, the content and a line feed for each."""
    said = _git("--git-dir", str(git_dir), "cat-file", "--batch", given="\n".join(names).encode() + b"\n")
    start = 0
    for name in names:
        end = said.index(b"\n", start)
        head = said[start:end].decode().split()
        if len(head) != 3 or head[1] != "blob":
            raise EngineError(
                "the git directory lacks a file of the revision",
                place=git_dir,
                expected=f"blob {name}",
                found=" ".join(head),
                next_step="fetch it completely, or give a checkout as --source",
            )
        start = end + 1 + int(head[2]) + 1
        yield said[end + 1 : start - 1]


def _git(*words: str, given: bytes = b"") -> bytes:
    try:
        return subprocess.run(["git", *words], input=given, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise EngineError("there is no git", place="PATH", found=error, next_step="install git") from error
    except subprocess.CalledProcessError as error:
        raise EngineError(
            "git failed",
            place=" ".join(words[:4]),
            expected="status 0",
            found=error.stderr.decode(errors="replace").strip() or f"status {error.returncode}",
            next_step="give the folder of a checkout, a git directory that has the pinned revision, or a URL",
        ) from error
