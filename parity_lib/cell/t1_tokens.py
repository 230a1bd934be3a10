"""Rung T1 of a cell: llama.cpp's tokenizer against one that is built from the file's own metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from parity_lib.base.errors import EngineError, WorkerDied
from parity_lib.base.progress import Progress
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.t1_known_differences import TOGETHER, KnownDifferences, load_differences
from parity_lib.judge.t1_tokens import (
    REFUSED,
    BytesResult,
    Ids,
    RankCheck,
    TextResult,
    TokenizerPair,
    join_rungs,
    judge_tokens,
)
from parity_lib.model_file.facts import ModelFacts
from parity_lib.model_file.header import ModelFile
from parity_lib.records.measured import Tokens
from parity_lib.records.pins import load_pins
from parity_lib.records.verdicts import Divergence, RungResult
from parity_lib.tokenizers.build import BuiltTokenizer
from parity_lib.tokenizers.metadata import NAMED, read_metadata
from parity_lib.tokenizers.ranks import RankTokenizer, open_ranks, pin_for
from parity_lib.tokenizers.texts import Text, generated_texts
from parity_lib.tokenizers.vocabulary_cases import Vocabulary, ensure_vocabulary, load_vocabulary_pins

PROMPTS, CASES = "prompts", "cases"


def compare_tokens_of(
    path: Path, facts: ModelFacts, texts: Sequence[tuple[str, str]], reference: Worker, progress: Progress
) -> tuple[RungResult, list[Divergence], Tokens]:
    """Tokenise prompts and generated texts with both tokenizers, compare the bytes of every token, and judge.

    Args:
        path: the model file whose metadata the second tokenizer is built from.
        facts: of that file.
        texts: (name, text) of each prompt; nothing can be excused there.
        reference: llama.cpp with that file open: an engine ``llama_vocabulary`` (enough) or ``llama_cpp``.
        progress: called with (texts done, texts).

    Returns:
        T1's result, its divergences, and what was measured.

    Raises:
        ModelFileError: the file's tokenizer is of a kind that cannot be built here.
    """
    built, known = BuiltTokenizer(read_metadata(path)), load_differences()
    wanted = [Text(name, PROMPTS, text) for name, text in texts] + list(generated_texts(own_names(built)))
    results = tokenise_all(built, wanted, known, reference, progress)
    results, ranks = hold_to_ranks(built, wanted, results, reference)
    pair = TokenizerPair(
        digest=facts.tokenizer_sha256,
        expected=Counter(text.group for text in wanted),
        texts=results,
        bytes=compare_bytes(built.token_bytes(), facts.n_vocab, reference.call("n_vocab"), reference),
        facts=built.facts(),
        ranks=ranks,
    )
    return judge_tokens(pair, known)


def compare_vocabulary_cases(
    say: Callable[[str], None] = lambda _: None,
) -> tuple[RungResult, list[Divergence], dict[str, Tokens]]:
    """Tokenise llama.cpp's own vocabulary cases with both tokenizers, compare with the expected ids, and judge.

    These belong to the build of llama.cpp and to no model: each vocabulary is a file of its own, without weights, and
    one of them without cases. The generated texts and all tokens' bytes are compared for each of them too.

    Args:
        say: told what is fetched, if anything has to be.

    Returns:
        As :func:`compare_tokens_of`; what was measured is by the vocabulary's name.
    """
    judged = {pin.name: _judge_vocabulary(ensure_vocabulary(pin, say)) for pin in load_vocabulary_pins()}
    rung = join_rungs([rung for rung, _, _ in judged.values()])
    lines = [line for _, lines, _ in judged.values() for line in lines]
    return rung, lines, {name: tokens for name, (_, _, tokens) in judged.items()}


def _judge_vocabulary(vocabulary: Vocabulary) -> tuple[RungResult, list[Divergence], Tokens]:
    name, known = vocabulary.pin.name, load_differences()
    built = BuiltTokenizer(read_metadata(vocabulary.path, family=vocabulary.pin.family))
    texts = [Text(f"{name}/case/{i:02d}", CASES, case.text) for i, case in enumerate(vocabulary.cases)]
    texts += [replace(text, name=f"{name}/{text.name}") for text in generated_texts(own_names(built))]
    with Worker("llama_vocabulary", {"path": str(vocabulary.path), "n_threads": 1}) as reference:
        results = tokenise_all(built, texts, known, reference, _silent)
        results, ranks = hold_to_ranks(built, texts, results, reference)
        found = compare_bytes(built.token_bytes(), built.n_tokens, reference.call("n_vocab"), reference)
    wanted = [vocabulary.expected(case, built) for case in vocabulary.cases]
    cases = [replace(result, expected=ids) for result, ids in zip(results, wanted, strict=False)]
    pair = TokenizerPair(
        digest=ModelFile(vocabulary.path).digest("tokenizer."),
        expected={CASES: 0} | Counter(text.group for text in texts),
        texts=[*cases, *results[len(cases) :]],
        bytes=found,
        facts=built.facts() | {"warning": ""},  # of the pinned files it is known what they leave out
        ranks=ranks,
    )
    return judge_tokens(pair, known)


def _silent(done: int, total: int) -> None:
    pass


def own_names(built: BuiltTokenizer) -> list[str]:
    """Return the texts of the file's own control tokens."""
    metadata = built.metadata
    return [text for text, kind in zip(metadata.tokens, metadata.types, strict=True) if kind in NAMED]


def tokenise_all(
    built: BuiltTokenizer, texts: Sequence[Text], known: KnownDifferences, reference: Worker, progress: Progress
) -> list[TextResult]:
    """Tokenise each text with both tokenizers; where they differ, try llama.cpp's listed rules for its class."""
    others: dict[str, BuiltTokenizer] = {}
    results = []
    for done, text in enumerate(texts, start=1):
        theirs, ours = _of_reference(reference, text.text), _of_built(built, text.text)
        following: dict[str, Ids] = {}
        for rules in known.ways(built.metadata.pre, text.group) if theirs != ours else ():
            if rules not in others:
                others[rules] = built.following(*rules.split(TOGETHER))
            following[rules] = _of_built(others[rules], text.text)
        results.append(TextResult(text.name, text.group, theirs, ours, following=following))
        progress(done, len(texts))
    return results


def hold_to_ranks(
    built: BuiltTokenizer, texts: Sequence[Text], results: Sequence[TextResult], reference: Worker
) -> tuple[list[TextResult], RankCheck | None]:
    """Add to each result the ids by the ranks that are pinned for this vocabulary, and compare all ranks' bytes.

    The results are unchanged where none are pinned, or were not fetched; the check's note says which.
    """
    pin = pin_for(built.metadata, load_pins().ranks)
    ranks = None if pin is None else open_ranks(built.metadata, pin)
    if pin is None or ranks is None:
        return list(results), None if pin is None else RankCheck(pin.id, pin.file.sha256, None)
    pairs = zip(results, texts, strict=True)
    held = [replace(result, ranks=_of_built(ranks, text.text)) for result, text in pairs]
    found = compare_bytes(ranks.token_bytes, pin.n_tokens, pin.n_tokens, reference)
    return held, RankCheck(pin.id, pin.file.sha256, found)


def compare_bytes(ours: Sequence[bytes], expected: int, n_tokens: int, reference: Worker) -> BytesResult:
    """Compare what each of the first ``n_tokens`` ids stands for."""
    theirs = reference.call("token_bytes", list(range(n_tokens)))
    different = [(i, a, b) for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b]
    return BytesResult(expected, len(theirs) if len(theirs) == len(ours) else 0, tuple(different))


def _of_reference(reference: Worker, text: str) -> Ids:
    try:
        return tuple(reference.call("tokenize", text))
    except WorkerDied:
        raise
    except EngineError:
        return REFUSED  # the other side has to refuse it too


def _of_built(built: BuiltTokenizer | RankTokenizer, text: str) -> Ids:
    try:
        return tuple(built.encode(text))
    except EngineError:
        return REFUSED
