"""Hostile headers are refused within bounds of memory and time that the system enforces, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from unspoken.cachefile import CAPS, Caps, FileManifest, peek, read_cache, write_cache
from unspoken.cachefile.caps import header_problem, nodes
from unspoken.cachefile.header import MANIFEST_KEY, encode_header, layout
from unspoken.cachefile.sealed import SEAL_KEY
from unspoken.errors import CacheFileError, UsageError
from unspoken.layout import parts
from unspoken.manifest import LayerInfo, Span
from unspoken.trust.encrypted import MAGIC
from unspoken.trust.seals import seal_file

from .forging import Forged, framed
from .tampering import NOW, SPEC, cache, signing_key

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="address space is limited and told as Linux does")

HEADER_BYTES = 4 << 20
# What a header may cost. The worst are numbers of three digits, which take about seventeen bytes of memory for each.
BYTES_FOR_ONE = 20
# Longer than the slowest took by a factor of ten; a header that takes time without end is killed.
CPU_SECONDS = 20
SCRYPT_BYTES = 256 << 20
DIGEST = "does not match its digest"
# Letters of as many members of an object as a header may have, with some room for those of an honest file.
MOST = 10 * 240_000
PEEK = "from unspoken.cachefile.header import peek; run = lambda: peek(path)"
DECRYPT = (
    "from unspoken.trust.encrypted import Passphrase, decrypt_file;"
    "run = lambda: decrypt_file(path, path + '.out', Passphrase('secret'))"
)
CHILD = """
import resource, sys
from unspoken.errors import UnspokenError
path, more = sys.argv[1], int(sys.argv[2])
{run}
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + more
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
try:
    run()
except UnspokenError as error:
    print(type(error).__name__, error.problem)
"""
SINK, SPAN = {"kind": "sink", "start": 0, "stop": 1}, {"kind": "content", "start": 0, "stop": 1 << 40}
COLUMN = {"kind": "content", "start": 0, "stop": 1}
LAYERS = [{"index": index, "kind": "full", "columns": 1 << 20} for index in range(1024)]


def bounded(path: Path, more_bytes: int, run: str = PEEK) -> str:
    """Return what a file is refused with by a process that may use so many bytes more than it has at its start."""
    code = CHILD.format(run=run, seconds=CPU_SECONDS)
    child = subprocess.run([sys.executable, "-c", code, path, str(more_bytes)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    return child.stdout.strip()


def _filled(unit: str, room: int) -> str:
    """Return a unit as often as there is room for, with commas between."""
    return ",".join([unit] * (room // (len(unit) + 1)))


def _names(room: int) -> str:
    """Return as many members of an object as there is room for, each of another short name."""
    return ",".join(f'"{at:05x}":0' for at in range(room // 10))


def _inside(file: Forged, old: str, new: Callable[[int], str], escape: str = "") -> bytes:
    """Return a file with something put into its manifest behind a place, as much as a header may hold."""
    text = json.dumps(file.manifest, separators=(",", ":"))
    assert old in text
    most = HEADER_BYTES - 2 * len(text) - len(json.dumps(file.tensors))
    manifest = json.dumps(text.replace(old, old + new(most) + ",", 1))
    if escape:
        manifest = manifest.replace(escape, "".join(f"\\u{ord(letter):04x}" for letter in escape))
    return framed(f'{{"__metadata__":{{"{MANIFEST_KEY}":{manifest}}},{json.dumps(file.tensors)[1:]}') + bytes(file.data)


# Headers of the largest size, and what the error says about them.
HOSTILE: dict[str, tuple[Callable[[Forged], bytes], str]] = {
    "short names": (lambda file: framed("{" + _names(HEADER_BYTES - 99) + "}"), "lists, objects and members"),
    "as many short names as may be": (lambda file: framed("{" + _names(MOST) + "}"), "no cache"),
    "empty lists": (lambda file: framed('{"a":[' + _filled("[]", HEADER_BYTES - 99) + "]}"), "lists, objects and"),
    "empty objects": (lambda file: framed('{"a":[' + _filled("{}", HEADER_BYTES - 99) + "]}"), "lists, objects and"),
    "as many lists as may be": (
        lambda file: _inside(file, '"lineage":[', lambda room: _step(_filled("[0]", 4 * 200_000))), DIGEST,
    ),
    "escaped lists": (
        lambda file: _inside(file, '"lineage":[', lambda room: _step(_filled("[]", room // 5)), "["), "lists, objects",
    ),
    "arguments of a step": (
        lambda file: _inside(file, '"lineage":[', lambda room: '{"op":"","args":{' + _names(MOST * 3 // 4) + "}}"),
        DIGEST,
    ),
    "strings": (lambda file: _inside(file, '"lineage":[', lambda room: _step(_filled('"ab"', room * 5 // 7))), DIGEST),
    "whole numbers": (lambda file: _inside(file, '"lineage":[', lambda room: _step(_filled("300", room))), DIGEST),
    "frequencies": (
        lambda file: _inside(file, '"inverse_frequencies":[', lambda room: _filled("0.5", room)), DIGEST,
    ),
    "token ids": (lambda file: _inside(file, '"token_ids":[', lambda room: _filled("300", room)), DIGEST),
    "digests": (
        lambda file: _inside(
            file, '"digests":{', lambda room: _names(MOST * 2 // 3).replace(":0", ':""')
        ),
        DIGEST,
    ),
    "a long seal": (lambda file: _sealed(file, "0" * (HEADER_BYTES - 9999)), "it is no text of at most 4096 letters"),
    "letters of four bytes": (lambda file: framed('{"a":"' + "x" * (HEADER_BYTES - 99) + '\U0001f600"}'), "no cache"),
    "digits": (lambda file: framed('{"a":' + "9" * (HEADER_BYTES - 99) + "}"), "header is not JSON"),
    "an endless element type": (lambda file: _forged(file, dtype="x" * (HEADER_BYTES - 9999)), "unknown element type"),
    "a million token ids": (lambda file: _forged(file, token_ids=[300] * (HEADER_BYTES // 5 - 2000)), "token ids for"),
    "spans": (lambda file: _forged(file, spans=[SPAN] * 50_000), "spans outside its columns"),
    "sinks": (lambda file: _forged(file, spans=[SINK] * 50_000), "50000 spans of sinks (at most 1024)"),
    "layers": (
        lambda file: _forged(
            file, spans=[SINK] * 1024 + [COLUMN] * 45_000, dtype="int8", layers=LAYERS, token_ids=None
        ),
        "lacks the tensors",
    ),
}  # fmt: skip


def _forged(file: Forged, **fields: Any) -> bytes:
    """Return a file with other fields in its manifest, and the manifest's digest right."""
    file.manifest["cache"] |= fields
    if "layers" in fields:
        file.manifest["cache"]["spec"]["layers"] = len(fields["layers"])
    return file.sealed().packed()


def _step(values: str) -> str:
    return f'{{"op":"","args":{{"":[{values}]}}}}'


def _sealed(file: Forged, seal: str) -> bytes:
    metadata = {MANIFEST_KEY: json.dumps(file.manifest), SEAL_KEY: seal}
    return framed(json.dumps({"__metadata__": metadata, **file.tensors})) + bytes(file.data)


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_header_is_refused_within_bounds_of_memory_and_time(good: Path, tmp_path: Path, name: str) -> None:
    make, problem = HOSTILE[name]
    path = tmp_path / "hostile.kv.safetensors"
    path.write_bytes(make(Forged.of(good)))
    assert path.stat().st_size < HEADER_BYTES + 10_000
    told = bounded(path, BYTES_FOR_ONE * HEADER_BYTES)
    assert told.startswith("CacheFileError ")
    assert problem in told


def test_the_bound_is_one_that_can_be_passed(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "hostile.kv.safetensors"
    path.write_bytes(HOSTILE["token ids"][0](Forged.of(good)))
    with pytest.raises(AssertionError, match="MemoryError"):
        bounded(path, BYTES_FOR_ONE * HEADER_BYTES // 2)


def test_an_encrypted_file_cannot_ask_for_more_than_256_mebibytes(tmp_path: Path) -> None:
    path = tmp_path / "file.encrypted"
    for log_n, room, told in ((18, SCRYPT_BYTES + (32 << 20), "does not open"), (19, 32 << 20, "asks for secret 1")):
        path.write_bytes(MAGIC + bytes((1, 1, log_n, 8, 1, 0, 0, 0)) + bytes(16 + 64))
        assert told in bounded(path, room, DECRYPT)
        assert not Path(f"{path}.out").exists()


def test_a_sound_and_sealed_file_with_a_large_header_stays_within_the_bound_too(tmp_path: Path) -> None:
    path, spans = tmp_path / "file.kv.safetensors", [Span("content", 0, 5)] * 50_000
    write_cache(cache(0, 5, True).labelled(spans=spans), path)
    seal_file(path, signing_key("lyra"), sender="lyra", seconds_to_live=60, now=NOW)
    header = peek(path)
    assert header.exact
    assert header.header_bytes > HEADER_BYTES // 2
    assert bounded(path, BYTES_FOR_ONE * HEADER_BYTES) == ""


@pytest.mark.parametrize("codec", ["int8", "int4", "q8_0", "q4_0"])
def test_what_a_file_unpacks_to_is_known_and_bounded_before_a_tensor_is_touched(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "file.kv.safetensors"
    write_cache(cache(0, 40, True), path, codec)
    unpacked = sum(layer.keys.nbytes + layer.values.nbytes for layer in read_cache(path).layers)
    assert unpacked == 2 * 3 * 2 * 40 * 16 * 4
    assert unpacked <= 8 * path.stat().st_size
    assert peek(path, Caps(unpacked_bytes=unpacked)).manifest.cache.dtype == codec
    with pytest.raises(CacheFileError, match=rf"unpacks to {unpacked} bytes \(at most {unpacked - 1}\)"):
        peek(path, Caps(unpacked_bytes=unpacked - 1))


def test_what_is_mapped_does_not_count_as_unpacked(good: Path) -> None:
    assert peek(good, Caps(unpacked_bytes=0)).manifest == peek(good).manifest


@pytest.mark.parametrize("codec", ["float32", "int8", "int4"])
def test_sinks_are_counted(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "file.kv.safetensors"
    write_cache(cache(0, 5, True), path, None if codec == "float32" else codec)
    assert peek(path, Caps(sinks=1)).manifest.cache.spans[0].kind == "sink"
    with pytest.raises(CacheFileError, match=r"has 1 spans of sinks \(at most 0\)"):
        peek(path, Caps(sinks=0))


def test_the_largest_honest_file_has_fewer_lists_and_members_than_are_allowed() -> None:
    layers = [LayerInfo(index, "full", 2048) for index in range(CAPS.layers)]
    spec = msgspec.structs.replace(SPEC, layers=CAPS.layers)
    info = msgspec.structs.replace(
        cache(0, 5, True).manifest, spec=spec, layers=tuple(layers), token_ids=(1,) * 2048, dtype="int4"
    )
    places = layout(parts(info))
    assert len(places) == CAPS.layers * 9
    header = encode_header(FileManifest(2, info, dict.fromkeys(places, "0" * 64), "0" * 64), places)
    assert nodes(header) < 80_000 < CAPS.nodes // 3
    assert header_problem(header, CAPS) is None


def test_lists_are_counted_where_they_are_escaped_too(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "file.kv.safetensors"
    held = nodes(good.read_bytes()[: peek(good).header_bytes])
    path.write_bytes(good.read_bytes())
    assert peek(path, Caps(nodes=held)).manifest == peek(good).manifest
    with pytest.raises(CacheFileError, match=rf"a header with {held} lists, .* \(at most {held - 1}\)"):
        peek(path, Caps(nodes=held - 1))


def test_a_cache_whose_header_no_reader_accepts_is_not_written(tmp_path: Path) -> None:
    made = cache(0, 5, True)
    spans = [Span("content", 0, 5)] * ((1 << 18) + 1)
    with pytest.raises(UsageError, match="no reader would accept its file"):
        write_cache(made.labelled(spans=spans), tmp_path / "file.kv.safetensors")
    assert not [*tmp_path.iterdir()]
