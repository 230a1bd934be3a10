"""Building the reference: what decides a build, what is kept, what is checked. Nothing is compiled here."""

from __future__ import annotations

import fcntl
import re
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from msgspec import structs

from parity_lib.base.errors import EngineError, PinError
from parity_lib.base.record import save_record
from parity_lib.base.surroundings import cache_dir
from parity_lib.engines.llamacpp.build import (
    LIBRARIES,
    build_steps,
    ensure,
    fetch_sdist,
    install,
    is_installed,
    kept_wheel,
    main,
    make_receipt,
    run_pip,
)
from parity_lib.engines.llamacpp.receipt import FILE_NAME, hash_libraries, read_receipt, sha256_of
from parity_lib.engines.llamacpp.recipe import Recipe, build_environment, compiler_version, host_target, recipe_for
from parity_lib.records.pins import load_pins

PIN = load_pins().llama_cpp
AVX2 = "flags\t: sse4_2 avx f16c bmi2 fma avx2\n"
AVX512 = AVX2.strip() + " avx512f avx512cd avx512vl avx512dq avx512bw avx512vbmi avx512_vnni avx512_bf16\n"
NEON = "Features\t: asimd asimddp fphp asimdhp\n"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipe_for(PIN, host_target(PIN), compiler_version())


@pytest.fixture
def wheel(recipe: Recipe, tmp_path: Path) -> Path:
    """A wheel with the layout of the real one, kept as a build would keep it. Its libraries are a few bytes."""
    folder = tmp_path / "cache" / "wheels" / recipe.key
    folder.mkdir(parents=True)
    path = folder / f"llama_cpp_python-{recipe.version}-py3-none-any.whl"
    info = f"llama_cpp_python-{recipe.version}.dist-info"
    files = {
        "llama_cpp/__init__.py": "",
        f"{LIBRARIES}/libllama.so": "code",
        f"{LIBRARIES}/libggml-cpu.so.0": "kernels",
        f"{LIBRARIES}/notes.txt": "no library",
        "lib/libllama.so": "a copy outside of the package",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {recipe.version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    save_record(make_receipt(recipe, path), folder / FILE_NAME)
    return path


@pytest.mark.parametrize(("cpuinfo", "target"), [(AVX512, "avx512"), (AVX2, "avx2"), (NEON, "neon")])
def test_a_host_gets_the_widest_target_that_it_can_run(cpuinfo: str, target: str, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert host_target(PIN, path) == target


def test_a_host_that_can_run_no_target_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("flags\t: sse2\n")
    with pytest.raises(PinError, match="avx512, avx2, neon"):
        host_target(PIN, path)


def test_the_flags_are_pinned_and_spelled_out(recipe: Recipe) -> None:
    env = build_environment(recipe)
    for flag in ("GGML_NATIVE=OFF", "GGML_LLAMAFILE=OFF", "LLAVA_BUILD=OFF", "CMAKE_CXX_FLAGS=-ffp-contract=off"):
        assert f"-D{flag}" in env["CMAKE_ARGS"].split()
    for line in PIN.target(recipe.target).cmake_args:
        assert line in env["CMAKE_ARGS"].split()


def test_the_users_own_compiler_switches_are_not_inherited(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXXFLAGS", "CMAKE_ARGS", "CMAKE_BUILD_TYPE", "SKBUILD_CMAKE_DEFINE", "GGML_CUDA"):
        monkeypatch.setenv(name, "-march=native")
    env = build_environment(recipe)
    assert "-march=native" not in env.values()


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="no C\\+\\+ compiler"):
        compiler_version()
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match="does not run"):
        compiler_version()


def test_whatever_changes_the_libraries_changes_the_name_of_the_wheel(recipe: Recipe) -> None:
    others = [
        replace(recipe, version="0.3.37"),
        replace(recipe, sdist_sha256="0" * 64),
        replace(recipe, cmake_args=(*recipe.cmake_args, "-DGGML_CPU_REPACK=OFF")),
        replace(recipe, compiler="c++ 13"),
        replace(recipe, architecture="riscv64"),
    ]
    assert len({r.key for r in [recipe, *others]}) == 6


def test_a_receipt_names_every_library_of_the_package(wheel: Path, recipe: Recipe) -> None:
    receipt = read_receipt(wheel.parent / FILE_NAME)
    assert sorted(receipt.libraries) == ["libggml-cpu.so.0", "libllama.so"]
    assert receipt.wheel_sha256 == sha256_of(wheel)
    assert set(receipt.tools) == {"cmake", "ninja", "scikit-build-core"}
    assert recipe.matches(receipt)
    assert not replace(recipe, compiler="c++ 13").matches(receipt)


def test_a_wheel_without_libraries_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "empty.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lib/libllama.so", "elsewhere")
    with pytest.raises(EngineError, match="no library"):
        make_receipt(recipe, path)


def test_only_a_wheel_that_matches_its_receipt_is_used_again(wheel: Path, recipe: Recipe) -> None:
    assert kept_wheel(recipe, wheel.parent) == wheel
    assert kept_wheel(replace(recipe, commit="f" * 40), wheel.parent) is None
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    assert kept_wheel(recipe, wheel.parent) is None


@pytest.mark.slow
def test_the_kept_wheel_is_installed_with_its_receipt_and_then_found(
    wheel: Path, recipe: Recipe, tmp_path: Path
) -> None:
    site, said = tmp_path / "site", list[str]()
    assert not is_installed(recipe, site)
    assert ensure(recipe, tmp_path / "cache", site, said.append, pip_site=site) == "installed"
    assert hash_libraries(site / LIBRARIES) == read_receipt(site / LIBRARIES / FILE_NAME).libraries
    assert ensure(recipe, tmp_path / "cache", site, said.append, pip_site=site) == "present"
    assert "matches its receipt" in said[-1]
    (site / LIBRARIES / "libllama.so").write_text("another code")
    assert not is_installed(recipe, site)
    assert ensure(recipe, tmp_path / "cache", site, said.append, pip_site=site) == "installed"
    assert is_installed(recipe, site)


@pytest.mark.slow
def test_a_second_set_up_waits_for_the_first(wheel: Path, recipe: Recipe, tmp_path: Path) -> None:
    waiting, said = threading.Event(), list[str]()

    def say(line: str) -> None:
        said.append(line)
        waiting.set()

    site = tmp_path / "site"
    with (wheel.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(
            target=ensure, args=(recipe, tmp_path / "cache", site, say), kwargs={"pip_site": site}
        )
        second.start()
        assert waiting.wait(60)
        assert not site.exists()
    second.join()
    assert "waiting for another" in said[0]
    assert is_installed(recipe, site)


@pytest.mark.slow
def test_libraries_that_are_not_the_wheels_are_refused(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / LIBRARIES).mkdir(parents=True)
    receipt = read_receipt(wheel.parent / FILE_NAME)
    save_record(structs.replace(receipt, libraries={"libllama.so": "0" * 64}), wheel.parent / FILE_NAME)
    with pytest.raises(PinError, match="other libraries"):
        install(wheel, site, site)
    assert not (site / LIBRARIES / FILE_NAME).exists()


def test_an_sdist_in_the_cache_is_used_only_by_its_hash(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / f"llama_cpp_python-{recipe.version}.tar.gz"
    path.write_bytes(b"source")
    ours = replace(recipe, sdist_sha256=sha256_of(path))
    said = list[str]()
    assert fetch_sdist(ours, tmp_path, said.append) == path
    assert said == []


def test_progress_is_reported_at_most_every_ten_seconds_and_at_the_end() -> None:
    lines = [f"  [{i}/139] /usr/bin/g++ -c file{i}.cpp\n" for i in range(1, 140)]
    clock = iter(range(10_000))
    steps = list(build_steps(["  *** Configuring\n", *lines], clock=lambda: float(next(clock))))
    assert steps[0] == "compiled 1 of 139"
    assert steps[-1] == "compiled 139 of 139"
    assert 10 < len(steps) < 30


@pytest.mark.slow
def test_a_failing_pip_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "pip.log"
    with pytest.raises(EngineError, match="no-such-option"):
        run_pip(["install", "--no-such-option"], log, lambda _: None, {"PATH": ""})
    assert "no-such-option" in log.read_text()


def test_an_unknown_target_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", "sse9"]) == 2
    assert "sse9" in capsys.readouterr().err


def test_set_up_fails_each_time_where_the_installed_build_dies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    death = EngineError("the build of llama.cpp dies", found="SIGILL at `ud2`")
    monkeypatch.setattr("parity_lib.engines.llamacpp.build.probe", Mock(side_effect=death))
    assert [main([]), main([])] == [3, 3]
    assert "SIGILL at `ud2`" in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_run_builds_nothing(recipe: Recipe) -> None:
    folder = cache_dir() / "wheels" / recipe.key
    before = sorted((p.name, p.stat().st_mtime_ns) for p in folder.glob("*"))
    command = [sys.executable, "-m", "parity_lib.engines.llamacpp.build"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert f"llama.cpp {PIN.commit[:8]} ({recipe.target}) is installed and matches its receipt" in said
    assert re.search(r"tried: \d\d products, each right", said)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in folder.glob("*")) == before
