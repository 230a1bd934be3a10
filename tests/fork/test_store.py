"""A stack that is not built, stale or damaged is not run, with a next step; no other build takes its place."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from parity_lib.base.errors import EngineError, PinError
from parity_lib.base.record import save_record
from parity_lib.cli.app import main
from parity_lib.engines.burn import sources, stacks
from parity_lib.engines.burn.build_info import load
from parity_lib.engines.burn.stacks import LIBRARY, RECEIPT
from parity_lib.records.builds import StackReceipt
from parity_lib.records.pins import load_pins
from parity_lib.records.stack_pins import StackPin

PUBLISHED = ("avx2", "simd", "flex", "modules", "ndarray-0.22", "simd-0.22", "flex-0.22")
FORK = ("spine", "spine-amx", "overlay", "overlay-fixed")
OTHERS = (*PUBLISHED, *FORK, "poisoned")
NDARRAY, FLEX = {"burn-ndarray", "matrixmultiply"}, {"burn-flex"}  # a backend, and what is named to choose its kernels
FLEX_KERNELS = ["burn-flex/x86-v4"]


def put(pin: StackPin, library: bytes = b"no library") -> StackReceipt:
    """Put a build that says all the right words into the store."""
    folder = stacks.folder(pin)
    folder.mkdir(parents=True)
    (folder / LIBRARY).write_bytes(library)
    receipt = StackReceipt(
        *(pin.id, folder.name, "0" * 64, "1" * 64, "2" * 64, "", "", {}),
        *(hashlib.sha256(library).hexdigest(), "rustc 1.95.0", ("python",), "x86_64-unknown-linux-gnu"),
    )
    save_record(receipt, folder / RECEIPT)
    return receipt


def test_every_stack_has_its_manifest_and_the_dependencies_of_the_default_one() -> None:
    pins = load_pins()
    assert set(pins.stacks) == {sources.CRATES_IO, *OTHERS}
    default = tomllib.loads((sources.NATIVE / "Cargo.toml").read_text())
    own = {"burn-tensor", "burn-ndarray"}
    for stack in OTHERS:
        folder = sources.manifest(stack)
        manifest = tomllib.loads((folder / "Cargo.toml").read_text())
        for table in ("dependencies", "build-dependencies", "profile"):
            asked, wanted = manifest[table], default[table]
            base, ours = stack[:5], table == "dependencies"
            named = {
                "spine": {"ndarray"},
                "modul": {"burn-nn", "burn-core"},
            }  # the fork, or burn's modules, called by name
            extra = named.get(base, set()) if ours else set()
            other = (NDARRAY, FLEX) if base.startswith("flex") and ours else (set(), set())  # another backend
            kept = set(wanted) - other[0]
            assert set(asked) == kept | extra | other[1], stack
            assert all(asked[name] == wanted[name] for name in kept - own), stack
        kernels = {"default": 0} | ({"avx512": FLEX_KERNELS} if stack.startswith("flex") else {})
        assert manifest["features"] | {"default": 0} == default["features"] | kernels
        locked = tomllib.loads((folder / "Cargo.lock").read_text())["package"]
        found = {package["name"]: package["version"] for package in locked}
        assert {name: found[name] for name in pins.stack(stack).crates} == dict(pins.stack(stack).crates)
        # What a patch puts there has no place in the registry: cargo cannot take the published crate instead.
        patched = {"spine": "ndarray", "overla": "burn-ndarray", "poison": "burn-ndarray"}.get(stack[:6].rstrip("-"))
        assert not [p for p in locked if p["name"] == patched and "source" in p], stack


@pytest.mark.parametrize("stack", OTHERS)
def test_a_stack_that_is_not_built_is_not_run_and_says_why(
    stack: str, empty_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError, match=rf"stack {stack}: the stack is not built.*found none.*parity stack build"):
        load(stack)
    assert main(["stack", "prove", stack]) == 3
    said = capsys.readouterr().out
    assert f"{stack}: NOT_RUN: stack {stack}: the stack is not built" in said
    source = load_pins().stack(stack).source
    assert ("--source DIR" in said) == (source is not None)
    assert source is None or source.revision[:12] in said


@pytest.mark.engine
def test_the_list_names_every_stack_that_is_not_built(empty_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(load_pins().stack("avx2"))
    assert main(["stack", "list"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    states = {line.split()[0]: line.split()[1] for line in lines}
    assert states == dict.fromkeys(OTHERS, "NOT_RUN") | {"crates-io": "built", "avx2": "built"}


def test_without_source_a_build_is_refused_and_says_what_it_needs(
    empty_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARITY_FORK_SOURCE", raising=False)
    for stack in FORK:
        assert main(["stack", "build", stack]) == 3
        said = capsys.readouterr().err
        assert "no source of the fork at hand" in said
        assert "https://github.com/AdaWorldAPI/ndarray at 4784945f428588e5839a2d46f53f95170f9dc1cb" in said
    assert main(["stack", "build", "avx2", "--source", "."]) == 2
    assert "takes no source" in capsys.readouterr().err
    assert main(["stack", "build", "crates-io"]) == 2
    assert "make setup" in capsys.readouterr().err


def test_the_library_with_faults_has_a_place_of_its_own(empty_store: Path) -> None:
    pin = load_pins().stack("avx2")
    receipt = put(pin)
    assert stacks.find(pin) == receipt
    with pytest.raises(EngineError, match=r"library with faults is not built.*parity stack build avx2 --faults"):
        stacks.find(pin, faults=True)
    # Without the feature it is not that library, wherever it lies.
    folder = stacks.folder(pin, faults=True)
    folder.mkdir()
    (folder / LIBRARY).write_bytes(b"no library")
    plain = structs.replace(receipt, key=folder.name)
    save_record(plain, folder / RECEIPT)
    with pytest.raises(PinError, match=r"not the one that was built.*features python"):
        stacks.find(pin, faults=True)
    built = structs.replace(plain, features=("faults", "python"), faults={"swap_gate_up": "wrong"})
    save_record(built, folder / RECEIPT)
    assert stacks.find(pin, faults=True) == built
    save_record(structs.replace(built, key=receipt.key), stacks.folder(pin) / RECEIPT)
    with pytest.raises(PinError, match="not the one that was built"):
        stacks.find(pin)


def test_a_build_of_other_sources_is_not_used(empty_store: Path) -> None:
    pin = load_pins().stack("spine")
    receipt = put(pin)
    assert stacks.find(pin) == receipt
    assert pin.source is not None
    for other in (replace(pin.source, sha256="0" * 64), replace(pin.source, revision="0" * 40)):
        with pytest.raises(EngineError, match=rf"not built.*builds of other sources only \({receipt.key}\)"):
            stacks.find(replace(pin, source=other))


def test_a_library_or_a_receipt_that_was_changed_is_refused(empty_store: Path) -> None:
    pin = load_pins().stack("avx2")
    put(pin)
    folder = stacks.folder(pin)
    with pytest.raises(EngineError, match="the library of the stack cannot be imported"):
        load("avx2")
    (folder / LIBRARY).write_bytes(b"no librarz")
    with pytest.raises(PinError, match="not the one that was built"):
        load("avx2")
    (folder / LIBRARY).unlink()
    with pytest.raises(PinError, match="no library"):
        load("avx2")
    for damage in ("{", "[]", "{}", '{"features": 1}'):
        (folder / RECEIPT).write_text(damage)
        with pytest.raises(PinError, match="cannot be read"):
            load("avx2")
    other = put(load_pins().stack("poisoned"))
    old = save_record(other, folder / RECEIPT).read_text().replace("stack-receipt/1", "stack-receipt/0")
    (folder / RECEIPT).write_text(old)
    with pytest.raises(PinError, match="of another schema; expected parity/stack-receipt/1"):
        load("avx2")
    save_record(other, folder / RECEIPT)  # a whole build, but another stack's
    with pytest.raises(PinError, match="not the one that was built"):
        load("avx2")
