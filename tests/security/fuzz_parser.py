"""Coverage-guided fuzzing of what reads a cache file: header, seal, tensors. `make fuzz` runs it for ten minutes.

A fuzzer cannot find a digest or a signature by trying, so it does not have to: most inputs are manifest, tensor table
and seal as plain JSON, which are put together to a file with every digest right and the sender's own signature.

    python -m tests.security.fuzz_parser FOLDER -max_total_time=600     # fuzz; findings go to FOLDER/findings
    python -m tests.security.fuzz_parser FILE                           # run a finding again
"""

from __future__ import annotations

import atexit
import contextlib
import json
import resource
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import atheris
from blake3 import blake3

with atheris.instrument_imports(include=["unspoken"]):
    from unspoken.cachefile import peek, read_cache
    from unspoken.cachefile.header import MANIFEST_KEY
    from unspoken.cachefile.sealed import DOMAIN, SEAL_KEY
    from unspoken.errors import CacheFileError, SealRefused, UnspokenError
    from unspoken.trust.seals import verify_seal
    from unspoken.trust.store import TrustStore

    from .tampering import NOW, SENDER, SESSION, World, canonical, joined, signing_key, split

# What the first byte of an input says of the others: a file; a header and data without the length; the same as JSON,
# to be put together with digests and signature right.
FILE, PLAIN, SIGNED = b"f", b"p", b"s"
BREAK = b"\n\x00"
MOST_BYTES, MORE_BYTES, SECONDS_FOR_ONE, TOLD_AFTER = 1 << 15, 1 << 30, 10, 256
KEY = signing_key(SENDER)
# What comes of putting together what does not belong together.
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error)
JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 3, 5, 16, 1 << 20, 1 << 31, 1 << 63, 10**4000, -0.5, 1e308, "", "0", "float32", "int8",
    "int4", "q8_0", "q4_0", "sink", "layers.0.keys", "\ud800", "\x00\n\x1b[2J", "x" * 500, [], [[]], {}, [0, 1],
    {"a": []},
)  # fmt: skip


def seeds(world: World) -> Iterator[bytes]:
    """Yield the inputs to begin with: one honest file of each codec in each of the three forms."""
    for each in world.attacked:
        if each.columns == 5 and "with token ids" in each.what:
            text, data = split(each.raw)
            fields = json.loads(text)
            metadata = fields.pop("__metadata__")
            whole = {"manifest": json.loads(metadata[MANIFEST_KEY]), "seal": json.loads(metadata[SEAL_KEY])}
            yield FILE + each.raw
            yield PLAIN + text.encode() + BREAK + data
            yield SIGNED + json.dumps(whole | {"tensors": fields}).encode() + BREAK + data  # Tensors in their order.


def assembled(data: bytes) -> bytes | None:
    """Return the file that an input stands for; None if it stands for none."""
    kind, rest = data[:1], data[1:]
    if kind == FILE:
        return rest
    text, _, content = rest.partition(BREAK)
    if kind == PLAIN:
        return joined(text, content)
    try:
        return _put_together(json.loads(text), content)
    except MALFORMED:
        return None


def _put_together(parts: dict[str, Any], content: bytes) -> bytes:
    """Return a file as `seal_file` makes it, but of anything; digests and signature are right as far as can be."""
    for repaired in (_digested, _sealed):
        with contextlib.suppress(MALFORMED):
            repaired(parts, content)
    metadata = {"format": "pt", MANIFEST_KEY: canonical(parts["manifest"]), SEAL_KEY: canonical(parts["seal"])}
    return joined(json.dumps({"__metadata__": metadata, **parts["tensors"]}, separators=(",", ":")), content)


def _digested(parts: dict[str, Any], content: bytes) -> None:
    manifest = parts["manifest"]
    for name, entry in parts["tensors"].items():
        start, stop = entry["data_offsets"]
        manifest["digests"][name] = blake3(content[start:stop]).hexdigest()
    whole = {name: value for name, value in manifest.items() if name != "digest"}
    manifest["digest"] = blake3(canonical(whole).encode()).hexdigest()


def _sealed(parts: dict[str, Any], content: bytes) -> None:
    manifest, seal = parts["manifest"], parts["seal"]
    ids = manifest["cache"]["token_ids"]
    seal["digest"] = manifest["digest"]
    seal["tokens"] = None if ids is None else blake3(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()
    unsigned = {name: value for name, value in seal.items() if name != "signature"}
    seal["signature"] = KEY.sign(DOMAIN + canonical(unsigned).encode())


@dataclass(frozen=True)
class Mutator:
    """Makes another input of one, or, as most inputs are refused and lead nowhere, of one of the first ones.

    Attributes:
        begin: The inputs to begin with.
    """

    begin: Sequence[bytes]

    def __call__(self, data: bytes, most_bytes: int, seed: int) -> bytes:
        """Return another input: of JSON, mostly one with another value somewhere; otherwise with other bytes."""
        draw = Random(seed)
        if draw.random() < 0.3:
            data = draw.choice(self.begin)
        text, mark, content = data[1:].partition(BREAK)
        lot = draw.random()
        if data[:1] != SIGNED or lot < 0.1:
            return bytes(atheris.Mutate(data, most_bytes))
        if lot < 0.2:
            return SIGNED + text + mark + bytes(atheris.Mutate(content, max(1, most_bytes - len(text) - 3)))
        try:
            made = json.dumps(_changed(json.loads(text), draw)).encode()
        except (ValueError, RecursionError):
            made = text
        return (SIGNED + made + mark + content)[:most_bytes]


def _changed(tree: Any, draw: Random) -> Any:
    """Change one value in a tree of lists and objects: to junk, to another one of the tree; remove it or double it."""
    places = [*_places(tree)]
    if not places:
        return draw.choice(JUNK)
    where, key = draw.choice(places)
    other, name = draw.choice(places)
    old = where[key]
    match draw.randrange(7):
        case 0:
            del where[key]
        case 1:
            where[key] = deepcopy(other[name])
        case 2 if isinstance(where, dict):
            where[str(name)] = deepcopy(old)
        case 3 if isinstance(where, list):
            where.insert(key, deepcopy(old))
        case 4 if isinstance(old, int):
            where[key] = old + draw.choice((-8, -1, 1, 8, 1 << 16))
        case 5 | 6 if alike := [junk for junk in JUNK if type(junk) is type(old)]:
            where[key] = deepcopy(draw.choice(alike))
        case _:
            where[key] = deepcopy(draw.choice(JUNK))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


class Judge:
    """Reads files as a receiver does, and says what must never come of it.

    Attributes:
        path: Where each file is written, to be read.
        store: Whom the receiver knows.
        honest: The headers of all files that a known sender has sealed.
        told: Where it is told, from time to time, how many inputs came how far.
        seen: How many that are.
    """

    def __init__(self, path: Path, store: TrustStore, honest: set[bytes], told: Path) -> None:
        self.path, self.store, self.honest, self.told = path, store, honest, told
        self.seen: Counter[str] = Counter()

    def __call__(self, data: bytes) -> int:
        """Judge one input; return -1 if it is not worth keeping.

        Raises:
            AssertionError: If a file is accepted that must not be, or an error is not told well.
        """
        self.seen["inputs"] += 1
        if self.seen["inputs"] % TOLD_AFTER == 0:  # The fuzzer ends the process, and nothing can be told at the end.
            self.told.write_text(json.dumps(self.seen))
        raw = assembled(data)
        if raw is None:
            self.seen["no file"] += 1
            return -1
        self.path.write_bytes(raw)
        header = self._tried("header", lambda: peek(self.path))
        if header is None:
            return 0
        cache = self._tried("tensors", lambda: read_cache(self.path, header=header))
        for layer in () if cache is None else cache.layers:
            if not (layer.keys.isfinite().all() and layer.values.isfinite().all() and (layer.positions >= 0).all()):
                raise AssertionError("a cache was read that no reader may take")
        trusted = self._tried("seal", lambda: verify_seal(header, self.store, now=NOW, session=SESSION))
        if trusted is not None and data[:1] != SIGNED and raw[: header.header_bytes] not in self.honest:
            raise AssertionError("a header was accepted that nobody has sealed")
        return 0

    def _tried(self, what: str, read: Callable[[], Any]) -> Any:
        try:
            found = read()
        except (CacheFileError, SealRefused) as error:
            _told_well(error)
            self.seen[f"{what} refused"] += 1
            return None
        self.seen[f"{what} accepted"] += 1
        return found


def _told_well(error: UnspokenError) -> None:
    if not (error.problem.isprintable() and error.problem.endswith(".") and len(error.problem) < 900 and error.hint):
        raise AssertionError(f"not told well: {error!r}")


def _limited() -> None:
    """Take no more memory from here on than a small file may cost, with room for the fuzzer's own."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(arguments: list[str]) -> None:
    """Fuzz, or run one input again."""
    with TemporaryDirectory() as made:
        world, folder = World(Path(made), sizes=(5,)), Path(arguments[0])
        honest = {each.raw[: world.header(each.raw).header_bytes] for each in world.attacked}
        options, told = arguments, Path(made) / "seen.json"
        if not folder.is_file():
            options, told = [*_options(folder, world), *arguments[1:]], folder / told.name
        judge = Judge(Path(made) / "fuzzed.kv.safetensors", world.store, honest, told)
        _limited()
        # The fuzzer's alarm would kill a process that ends with an error, before it has written what it found.
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0.0)
        atheris.Setup([sys.argv[0], *options], judge, custom_mutator=Mutator([*seeds(world)]))
        atheris.Fuzz()


def _options(folder: Path, world: World) -> list[str]:
    """Write the seeds, and return what the fuzzer is told: where its folders are, and its bounds."""
    corpus, found, begin = (folder / name for name in ("corpus", "findings", "seeds"))
    for each in (corpus, found, begin):
        each.mkdir(parents=True, exist_ok=True)
    for at, data in enumerate(seeds(world)):
        (begin / f"{at:03}").write_bytes(data)
    return [
        str(corpus), str(begin), f"-artifact_prefix={found}/", f"-max_len={MOST_BYTES}",
        f"-timeout={SECONDS_FOR_ONE}", "-print_final_stats=1",
        # The process bounds its memory itself, above; the fuzzer reads a peak that a process inherits from its parent.
        "-rss_limit_mb=0",
    ]  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
