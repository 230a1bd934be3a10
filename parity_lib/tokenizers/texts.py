"""Hundreds of nasty texts for two tokenizers: the same on every machine, made from counted integers.

A class is a list of parts, and a text of it is a few of its parts in a row. Parts are written down here, not asked
from Python's Unicode tables, which differ between versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

PER_CLASS = 28
MODULUS = 1 << 64


@dataclass(frozen=True, slots=True)
class Text:
    """One text to tokenise."""

    name: str  # "digits/007"
    group: str  # "digits"
    text: str


def _parts(words: str) -> list[str]:
    return words.split(" ")  # by blanks only: other white space is among the parts


_NUMBERS = _parts("0 7 12 345 2024 99999 1234567890 0.5 47,5 1e-5 ½ ²³ Ⅻ ٣٤٥ ०१२ １２３")
_EMOJI = _parts("😀 👍🏽 👩\u200d⚕️ 👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 ❤️ 🇩🇪 🫁 🩺 1️⃣ ☠ \u200d \ufe0f 🦙 ok")
_CONTRACTIONS = _parts("'s 't 're 've 'm 'll 'd 'S 'RE 'Ll ’s ’re ʼt 'ſ 'ſte 'K '' ' it THEY we x")
_CJK = _parts("出院 诊断 患者 高血压 。 ， 、 カルテ ひらがな 한국어 漢 𠀀 ㍿ 「 A")
_ARABIC = _parts("المريض جرعة ٥ ملغ ، ؟ مُحَمَّد لا \u200f ـ ﷺ پزشک")
_HEBREW = _parts("שלום חולה בְּרֵאשִׁית ״ ־ 5 \u200e ﬡ ק״ג")
_DEVANAGARI = _parts("रोगी को क्षमा ज़ १२ । श्री \u200d \u200c தமிழ் ไทย ខ្មែរ བོད")
# Composed and not, in canonical order and not, and characters that have another one as their composed form.
_MARKS = _parts("e\u0301 a\u0308 o\u0302\u0323 n\u0303 q\u0307\u0323 A\u030a \u0301 \u0304x \u212b \u2126")
_MARKS += _parts(
    "s\u0323\u0307 \u0344 \u1100\u1161\u11a8 क\u093c \u0f40\u0f71\u0f72 \u00e9 \u00c5 \uf900 \ufb01 \u0374 caf te"
)
_CODE = _parts('{ } (); -> :: // #! <<= && \\n ` $x __init__ 0x1F == " ... — „“ x return')
_NAMES = _parts("<|endoftext|> <|im_start|> <|im_end|> <|begin_of_text|> <|eot_id|> <s> </s> <unk> [INST] user")
_NAMES += _parts("<|im_end im_end|> <| |> <repo_name> <file_sep> <tool_call> [PAD151646] <|end|>")
_SPACES = [
    *"\t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff ",
    "\r\n",
    "  ",
]
_SPACES += ["    ", "\n\n", " \n", "\t\t", "\u3000 ", "\xa0\xa0"]
_CONTROLS = [chr(code) for code in (*range(0x09), *range(0x0E, 0x1C), 0x7F, 0x80, 0x9F)]
_JOINED = [".\x04.", "=\x06=\x06=", "-\x13\x16--"]  # a byte without a token between two that may merge
# Not assigned, not characters, for private use, and the replacement character.
_UNASSIGNED = [*"\u0378\u0530\u2065\ufdd0\uffff\ue000\uf8ff\ufffd"]
_UNASSIGNED += ["\U0001fffe", "\U00050000", "\U000e0080", "\U000f0000", "\U0010ffff"]
# Letters, then digits, of Unicode 16 and 17.
_NEW = [*"\u1c89\ua7cb\U000105c0\U00010d4a\U00011380\U00013460\U00016d40\U0001e5d0"]
_NEW += [*"\U00010d40\U000116d0\U0001ccf0\U0001e5f1\U00016130\U00011de0\U00016ff4"]
_LONG = ["a" * 300, "Donaudampfschifffahrt" * 12, "0123456789" * 30, "=" * 200, " " * 150, "é" * 120, "血" * 90]
_LONG += ["ab" * 400, "\n" * 70, "😀" * 40]

CLASSES: Mapping[str, Sequence[str]] = {
    "digits": [*_NUMBERS, " ", ".", "-", "mg"],
    "contractions": [*_CONTRACTIONS, " "],
    "emoji": [*_EMOJI, " "],
    "cjk": [*_CJK, "\u3000"],
    "arabic": [*_ARABIC, " "],
    "hebrew": [*_HEBREW, " "],
    "devanagari": [*_DEVANAGARI, " "],
    "marks": [*_MARKS, " "],
    "whitespace": [*_SPACES, "a", "b"],
    "control-names": [*_NAMES, " ", "\n"],
    "control-bytes": [*_CONTROLS, *_JOINED, ".", "a", " ", "ab"],
    "unassigned": [*_UNASSIGNED, "a", "1", " ", "."],
    "new-letters": [*_NEW, "a", "1", "'s", "."],
    "code": [*_CODE, " ", "  ", "\n"],
    "long-words": [*_LONG, "x", " "],
    "edges": ["", " ", "  ", "\n", "a", " a", "a ", "\t", "the end", "."],
}
INVALID = ["\ud800", "a\udfffb"]  # lone surrogates: no Unicode text, both sides must refuse


def generated_texts(own_names: Sequence[str]) -> tuple[Text, ...]:
    """Return the generated texts: for each class the empty row of parts, its parts alone, then rows of two to nine.

    Args:
        own_names: the texts of the file's own control tokens, which stand in "control-names" beside well-known ones.
    """
    classes = dict(CLASSES) | {"control-names": [*CLASSES["control-names"], *own_names[:12]]}
    classes["mixed"] = [part for parts in classes.values() for part in parts]
    texts = [text for seed, (group, parts) in enumerate(classes.items()) for text in _of_class(group, parts, seed)]
    texts += [Text(f"invalid/{i:03d}", "invalid", text) for i, text in enumerate(INVALID)]
    return tuple(texts)


def _of_class(group: str, parts: Sequence[str], seed: int) -> Iterator[Text]:
    rows = [] if group == "mixed" else list(parts)
    numbers = _integers(seed)
    n_texts = max(PER_CLASS, len(rows) + PER_CLASS // 2) if rows else 4 * PER_CLASS
    while len(rows) < n_texts:
        count = 2 + next(numbers) % 8
        rows.append("".join(parts[next(numbers) % len(parts)] for _ in range(count)))
    for number, text in enumerate(rows):
        yield Text(f"{group}/{number:03d}", group, text)


def _integers(seed: int) -> Iterator[int]:
    """Yield pseudo-random integers below 2^31: Knuth's MMIX generator, its upper bits."""
    state = seed
    while True:
        state = (6364136223846793005 * state + 1442695040888963407) % MODULUS
        yield state >> 33
