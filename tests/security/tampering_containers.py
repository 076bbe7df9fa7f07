"""Tampering with encrypted files: bits, chunks, their order, the end, and the parameters in the header."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from unspoken.trust.encrypted import TAG_BYTES, KeyFile

from .tampering import flipped

HEADER_BYTES = 40
# Small chunks, so that a small file has many; nothing else in the construction depends on their size.
CHUNK_BYTES = 256
# log2(n), r and p of scrypt: none, too little, too much, and what no scrypt has.
COSTS = (
    (0, 0, 0), (9, 8, 1), (19, 8, 1), (63, 8, 1), (255, 255, 255), (15, 8, 0), (15, 8, 5), (15, 9, 1), (15, 0, 1),
    (18, 8, 255), (0, 8, 1), (1, 0, 0),
)  # fmt: skip
KEYS = (KeyFile(bytes(range(32))), KeyFile(bytes(range(1, 33))))

Attack = Callable[[list[bytes], Random], Iterator[tuple[str, bytes]]]
"""Yields at least fifty changes of encrypted files, the first two of which hold the same file under the same key."""


def chunks(raw: bytes) -> list[bytes]:
    """Return the chunks of a file, each with its tag."""
    size = CHUNK_BYTES + TAG_BYTES
    return [raw[at : at + size] for at in range(HEADER_BYTES, len(raw), size)]


def bits_of_the_header(files: list[bytes], draw: Random) -> Iterator[tuple[str, bytes]]:
    """Flip every bit of the header."""
    for bit in range(8 * HEADER_BYTES):
        yield f"bit {bit} of the header", flipped(files[0], bit)


def bits_of_the_chunks(files: list[bytes], draw: Random) -> Iterator[tuple[str, bytes]]:
    """Flip bits of chunks and tags."""
    for at in range(150):
        raw = files[at % len(files)]
        bit = draw.randrange(8 * HEADER_BYTES, 8 * len(raw))
        yield f"bit {bit} of file {at % len(files)}", flipped(raw, bit)


def chunks_reordered(files: list[bytes], draw: Random) -> Iterator[tuple[str, bytes]]:
    """Exchange, repeat, leave out, insert and take over chunks from another file, of the same key even."""
    first, second = files[:2]
    head, mine, theirs = first[:HEADER_BYTES], chunks(first), chunks(second)
    for _ in range(25):
        one, other = sorted(draw.sample(range(len(mine)), 2))
        swapped = [*mine]
        swapped[one], swapped[other] = swapped[other], swapped[one]
        changes = {
            f"{one} and {other} exchanged": swapped,
            f"{one} twice": [*mine[: one + 1], *mine[one:]],
            f"without {one}": [*mine[:one], *mine[one + 1 :]],
            f"{one} where {other} was": [*mine[:other], mine[one], *mine[other + 1 :]],
            f"{one} of another file": [*mine[:one], theirs[one], *mine[one + 1 :]],
            f"from {other} on of another file": [*mine[:other], *theirs[other:]],
        }
        for what, changed in changes.items():
            yield what, head + b"".join(changed)
    yield "header of another file", second[:HEADER_BYTES] + b"".join(mine)


def cut_and_extended(files: list[bytes], draw: Random) -> Iterator[tuple[str, bytes]]:
    """Cut files off, where chunks end above all, and add bytes to their end."""
    raw, size = files[0], CHUNK_BYTES + TAG_BYTES
    for stop in range(HEADER_BYTES, len(raw), size):
        yield f"cut at {stop}", raw[:stop]
    for at in range(40):
        stop, more = draw.randrange(len(files[at % len(files)])), draw.randbytes(draw.randrange(1, 2 * size))
        yield f"file {at} cut at {stop}", files[at % len(files)][:stop]
        yield f"file {at} with {len(more)} bytes more", files[at % len(files)] + more
    for count in (1, 15, 16, 17, size):
        yield f"{count} zeros more", raw + bytes(count)
    yield "twice", raw + raw
    yield "chunks twice", raw + raw[HEADER_BYTES:]


def parameters(files: list[bytes], draw: Random) -> Iterator[tuple[str, bytes]]:
    """Ask for other versions, other secrets, and more work than a reader does."""
    raw = files[0]
    for kind in (0, 1, 2, 3, 255):
        for log_n, r, p in COSTS:
            if (kind, log_n, r, p) != (2, 0, 0, 0):
                yield f"secret {kind}, scrypt {log_n}, {r}, {p}", raw[:17] + bytes((kind, log_n, r, p)) + raw[21:]
    for version in (0, 2, 255):
        yield f"version {version}", raw[:16] + bytes((version,)) + raw[17:]
    yield "no header", raw[HEADER_BYTES:]
    yield "not encrypted at all", b"\x93unspoken-crypt\n" + bytes(24)


ATTACKS: dict[str, Attack] = {
    "bits of an encrypted file's header": bits_of_the_header,
    "bits of an encrypted file's chunks": bits_of_the_chunks,
    "chunks reordered, repeated, left out": chunks_reordered,
    "encrypted files cut and extended": cut_and_extended,
    "parameters of an encrypted file": parameters,
}
