"""The extension module as Python sees it: what it says about itself, its errors, and that its stub tells the truth."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import burn_gguf
import pytest

from parity_lib.engines.burn import stacks
from parity_lib.engines.burn.sources import CRATES_IO
from parity_lib.faults.names import known_faults
from parity_lib.models.synthetic import Shape, build
from parity_lib.records.pins import load_pins

pytestmark = pytest.mark.engine

STUB = Path(__file__).parents[2] / "parity_lib" / "burn_gguf" / "burn_gguf.pyi"


ASK = """
import json, sys
from parity_lib.engines.burn.build_info import CRATES_IO, load
library, _ = load(CRATES_IO, faults=True)
models = (library.Model(sys.argv[1], "f32", 1, fault) for fault in sys.argv[2:])
print(json.dumps([library.faults(), [json.loads(model.facts_json())["fault"] for model in models]]))
"""


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer qwen2 model: it has every tensor that a fault can touch."""
    return build("qwen2", "F32", tmp_path_factory.mktemp("model") / "m.gguf", Shape(n_layer=2, n_vocab=512))


def parameters(function: object) -> list[str]:
    """Names of a callable's parameters, without ``self``."""
    return [name for name in inspect.signature(function).parameters if name != "self"]  # type: ignore[arg-type]


def test_the_stub_names_what_the_module_has() -> None:
    tree = ast.parse(STUB.read_text())
    named = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert named == {name for name in dir(burn_gguf.burn_gguf) if not name.startswith("_")}
    for node in tree.body:
        members = [(node, burn_gguf)] if isinstance(node, ast.FunctionDef) else []
        if isinstance(node, ast.ClassDef):
            owner = getattr(burn_gguf, node.name)
            members = [(part, owner) for part in node.body if isinstance(part, ast.FunctionDef)]
        for part, owner in members:
            stub = [argument.arg for argument in part.args.args if argument.arg not in ("self", "cls")]
            built = owner if part.name == "__new__" else getattr(owner, part.name)
            assert stub == parameters(built), part.name


def test_the_binary_names_its_build() -> None:
    info = json.loads(burn_gguf.build_info())
    assert set(info["crates"]) == {"burn-tensor", "burn-ndarray", "ndarray", "matrixmultiply", "mimalloc", "pyo3"}
    assert (info["crates"]["burn-tensor"], info["crates"]["burn-ndarray"]) == ("0.21.0", "0.21.0")
    assert (info["profile"], info["opt_level"], info["debug_assertions"]) == ("release", "3", False)
    assert info["rustc"].startswith("rustc 1.95")
    assert all(len(info[name]) == 64 for name in ("source_sha256", "lock_sha256"))


def test_the_instruction_set_is_not_claimed() -> None:
    isa = json.loads(burn_gguf.isa_json())
    assert isa["observed"] == "unproven"
    assert "sampled" in isa["reason"]


def test_every_fault_of_the_list_is_accepted_by_the_library_with_faults(model_file: Path) -> None:
    """In a process of its own: a library reserves thread-local memory, and this one holds the judged library."""
    known = known_faults()
    assert len(known) >= 16
    forms = {"=q|k|v|q@blk.N|k@blk.N|v@blk.N": "=k@blk.1", "[=X|X@blk.N]": "=2@blk.1", "N|all": "1", "=X": "=2"}
    forms |= {"[@from=P]": "@from=3", "[@blk.N]": "@blk.1", "N": "1", "=R": "=0", "=S": "=0"}
    texts = []
    for name, what in known.items():
        text = name
        for form, value in forms.items():
            text = text.replace(form, value) if text.endswith(form) else text
        texts.append(text)
        assert what
    said = subprocess.run(
        [sys.executable, "-c", ASK, str(model_file), *texts], check=True, capture_output=True, text=True
    ).stdout
    listed, seeded = json.loads(said)
    assert (dict(listed), seeded) == (known, texts)


def test_the_judged_library_has_no_fault(model_file: Path) -> None:
    assert burn_gguf.faults() == []
    for fault in ("swap_gate_up", "no such fault", ""):
        with pytest.raises(burn_gguf.BurnError, match=rf"built without faults.*found \"{fault}\".*parity stack build"):
            burn_gguf.Model(model_file, "f32", 1, fault)
    assert json.loads(burn_gguf.Model(model_file).facts_json())["fault"] is None


def test_no_name_text_or_symbol_of_a_fault_is_in_the_judged_library() -> None:
    """The whole file is searched: strings, symbols, and the names of source files in its line tables."""
    judged = Path(burn_gguf.burn_gguf.__file__).read_bytes()
    with_faults = (stacks.folder(load_pins().stack(CRATES_IO), faults=True) / stacks.LIBRARY).read_bytes()
    forms = known_faults()
    heads = {re.split(r"[@=\[]", form)[0] for form in forms}
    heads -= {"rope_base", "die", "panic", "nan"}  # a fact of the model, and words of the standard library
    texts = {*forms.values(), *heads, "src/faulty.rs", "FaultyOps", "seeded fault"}
    assert len(heads) >= 12
    assert [text for text in texts if text.encode() in judged] == []
    assert [text for text in texts if text.encode() not in with_faults] == []


def test_sites_are_those_of_the_reference() -> None:
    sites = burn_gguf.sites(2)
    assert len(sites) == len(set(sites)) == 3 + 2 * 26
    assert {"embd", "attn_norm-0", "Qcur-1", "kqv_out-0", "ffn_swiglu-1", "l_out-1", "result_norm"} < set(sites)


def test_the_file_is_blamed_only_for_what_is_its_fault(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGML" + bytes(100))
    with pytest.raises(burn_gguf.BurnFileError, match="wrong magic"):
        burn_gguf.Model(tmp_path / "bad.gguf")
    for arguments in (("f64",), ("f32", 0), ("f32", 1, "no such fault")):
        with pytest.raises(burn_gguf.BurnError) as raised:
            burn_gguf.Model(model_file, *arguments)
        assert not isinstance(raised.value, burn_gguf.BurnFileError)
    assert issubclass(burn_gguf.BurnFileError, burn_gguf.BurnError)


def test_metadata_is_json(model_file: Path) -> None:
    metadata = json.loads(burn_gguf.GgufFile(model_file).metadata_json())
    assert metadata["general.architecture"] == "qwen2"
    assert metadata["qwen2.block_count"] == 2


def test_a_session_goes_on_where_a_saved_one_stood(model_file: Path) -> None:
    model = burn_gguf.Model(model_file)
    original, restored = burn_gguf.Session(model, 2), burn_gguf.Session(model, 2)
    original.append([(1, 5), (0, 6), (1, 7)])
    restored.restore(original.save())
    assert original.lengths() == restored.lengths() == [1, 2]
    assert original.append([(1, 8)]) == restored.append([(1, 8)])
    with pytest.raises(burn_gguf.BurnError, match="does not belong to this session"):
        restored.restore(original.save()[:-1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: burn_gguf.op_linear("Q9_0", b"", 1, 1, b""), "option type"),
        (lambda: burn_gguf.op_linear("F32", bytes(4), 1, 1, bytes(3)), "wrong length"),
        (lambda: burn_gguf.op_rope(bytes(16), 1, 4, [0], "both", 4, 1e4), "adjacent or halves"),
        (lambda: burn_gguf.op_rope(bytes(16), 1, 4, [0, 1], "halves", 4, 1e4), "positions of RoPE"),
        (lambda: burn_gguf.op_rope(bytes(16), 0, 0, [0], "halves", 4, 1e4), "wrong length"),
        (lambda: burn_gguf.op_attention(bytes(8), bytes(8), bytes(8), [(0, 1), (0, 2)], 1, 1, 1, 1, 1.0), "positions"),
        (lambda: burn_gguf.op_attention(b"", b"", b"", [], 1, 0, 1, 1, 1.0), "heads"),
        (lambda: burn_gguf.op_soft_max(bytes(16), 4, [5], 1.0), "visible keys"),
        (lambda: burn_gguf.op_soft_max(bytes(16), 4, [0], 1.0), "visible keys"),
        (lambda: burn_gguf.op_kqv(bytes(16), 4, bytes(8), 1), "values"),
        (lambda: burn_gguf.op_add(bytes(16), bytes(8)), "second operand"),
        (lambda: burn_gguf.op_embed("F32", bytes(16), 2, 2, [2]), "outside of the vocabulary"),
        (lambda: burn_gguf.op_swiglu(bytes(4), bytes(4), 0), "n_threads"),
    ],
)
def test_ops_refuse_what_does_not_fit(call: object, words: str) -> None:
    with pytest.raises(burn_gguf.BurnError, match=words):
        call()  # type: ignore[operator]
