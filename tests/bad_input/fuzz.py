"""Give spoiled headers to both readers, in a process whose memory is limited: ``python fuzz.py SOUND FOLDER``.

Prints one JSON object: how many files each reader took and refused, and every exception that is not the project's.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf

from parity_lib.base.errors import ParityError
from parity_lib.engines.burn.engine import Burn, load
from parity_lib.model_file.facts import read_facts

ROOM_BYTES = 1 << 30  # more than what the process has mapped when the readers are loaded; a sound file takes none of it
ABSURD = (0, 0x7F, 0xFF)


def spoiled(sound: bytes, n_header: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of every spoiled file: the same ones each time.

    Single bits, whole bytes set to extreme values, eight bytes at once (a count, a length or an offset), cuts.
    """
    draw = random.Random(20260101)
    for place in sorted(draw.sample(range(8 * n_header), 220)):
        data = bytearray(sound)
        data[place // 8] ^= 1 << place % 8
        yield f"bit {place}", bytes(data)
    for place in sorted(draw.sample(range(n_header), 90)):
        data = bytearray(sound)
        data[place] = ABSURD[place % 3]
        yield f"byte {place}", bytes(data)
    for place in sorted(draw.sample(range(4, n_header - 8), 90)):
        data = bytearray(sound)
        data[place : place + 8] = b"\xff" * 7 + b"\x7f"
        yield f"eight bytes at {place}", bytes(data)
    for length in sorted(draw.sample(range(n_header), 60)):
        yield f"cut at {length}", sound[:length]


def main(source: Path, folder: Path) -> int:
    """Give every spoiled file to both readers; return 0 if each was taken or refused."""
    load("crates-io")
    _, limit = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM_BYTES, limit))
    sound = source.read_bytes()
    target, path = sys.argv[3], folder / "spoiled.gguf"
    found: dict[str, list[str]] = {"taken": [], "refused": [], "foreign": [], "unclear": [], "two answers": []}
    for name, data in spoiled(sound, int(gguf.GGUFReader(source).data_offset)):
        path.write_bytes(data)
        said = []
        for reader, read in (("python", read_facts), ("rust", lambda p: Burn(p, isa=target, n_threads=1).close())):
            try:
                read(path)
                found["taken"].append(f"{reader}: {name}")
                said.append("taken")
            except ParityError as error:
                found["refused"].append(f"{reader}: {name}")
                said.append(str(error))
                if path.name not in str(error) or "expected " not in str(error):
                    found["unclear"].append(f"{reader}: {name}: {error}")
            except BaseException as error:  # noqa: BLE001 - a panic is one too, and what this searches for
                found["foreign"].append(f"{reader}: {name}: {type(error).__name__}: {error}")
        if len(set(said)) != 1:
            found["two answers"].append(f"{name}: {said}")
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
