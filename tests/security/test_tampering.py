"""Over three thousand tamperings of sealed and encrypted files, each of them refused, and no honest file refused.

What is done is in the modules `tampering*.py`, by class. Where a forger can make every digest right, attempts are
`sound`: without its seal such a file is read as any other, which is tested too, so that it is the seal that refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

import pytest
import torch
from click.testing import CliRunner

from unspoken.cachefile import read_cache, read_packed
from unspoken.cli import cli
from unspoken.errors import DecryptionFailed, SealRefused, UnspokenError
from unspoken.trust import encrypted
from unspoken.trust.nonces import Ledger
from unspoken.trust.receiving import admit, receive

from . import tampering_bytes, tampering_containers, tampering_meaning, tampering_seals
from .tampering import NOW, SENDER, SESSION, Attempt, Honest, World

ATTACKS = tampering_bytes.ATTACKS | tampering_meaning.ATTACKS | tampering_seals.ATTACKS
SOUND = ("the same words written in another way",)
HERE = (NOW, SESSION, SENDER)
FEWEST_OF_A_CLASS, FEWEST, FEWEST_HONEST = 50, 1000, 100


@dataclass(frozen=True)
class Receiver:
    """Somebody who takes files in as `unspoken verify --trusted --once --session S --from lyra` does."""

    world: World
    folder: Path
    numbers: Iterator[int]

    def refusal(self, attempt: Attempt) -> UnspokenError | None:
        """Return why a file is refused, or None if it is taken. The ledger of nonces knows but what came before.

        Were it the same for all, a file could be refused for the nonce of an earlier attempt. Where nothing came before
        there is none: an empty one refuses nothing, and takes most of the time.
        """
        at = next(self.numbers)
        ledger, path = None, self.folder / f"received{at % 2}.kv.safetensors"
        if attempt.before is not None:
            ledger = Ledger(self.folder / f"ledger{at}")
            path.write_bytes(attempt.before)
            receive(path, self.world.store, ledger, now=NOW, session=attempt.session, expected_sender=SENDER)
        path.write_bytes(attempt.raw)
        try:
            receive(
                path, self.world.store, ledger, now=attempt.now, session=attempt.session, expected_sender=attempt.sender
            )
        except UnspokenError as error:
            return error
        return None

    def problem(self, attempt: Attempt) -> str | None:
        """Return what is wrong with how a tampered file was met, or None if all is as it should be."""
        error = self.refusal(attempt)
        if error is None:
            return f"accepted: {attempt.what}"
        if not (error.problem.isprintable() and error.problem.endswith(".") and error.hint.endswith(".")):
            return f"not told well: {attempt.what}: {error!r}"
        if attempt.sound and type(error) is not SealRefused:
            return f"not refused for its seal: {attempt.what}: {error!r}"
        return None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Honest files and people; nonces are drawn from a fixed seed, so that each run tries the same files."""
    draw = Random("nonces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unspoken.trust.seals.secrets.token_hex", lambda size: draw.randbytes(size).hex())
        made = World(tmp_path_factory.mktemp("world"))
        assert made.honest
        yield made


@pytest.fixture(scope="module")
def receiver(world: World, tmp_path_factory: pytest.TempPathFactory) -> Receiver:
    """The one who has to refuse them."""
    return Receiver(world, tmp_path_factory.mktemp("received"), count())


@pytest.fixture(scope="module")
def attempts(world: World) -> dict[str, list[Attempt]]:
    """All tamperings with sealed files, by class."""
    return {name: list(attack(world, Random(name))) for name, attack in ATTACKS.items()}


@pytest.mark.parametrize("name", ATTACKS)
def test_every_tampering_is_refused(
    world: World, receiver: Receiver, attempts: dict[str, list[Attempt]], name: str
) -> None:
    problems = [problem for attempt in attempts[name] if (problem := receiver.problem(attempt)) is not None]
    told = "\n".join(problems[:10])
    assert not problems, f"{name}: {len(problems)} of {len(attempts[name])} not refused as they should be:\n{told}"


@pytest.mark.parametrize("name", [*SOUND, *tampering_meaning.ATTACKS, *tampering_seals.ATTACKS])
def test_without_the_seal_these_files_would_be_read(
    attempts: dict[str, list[Attempt]], name: str, tmp_path: Path
) -> None:
    sound = [each for each in attempts[name] if each.sound]
    for at, attempt in enumerate(sound):
        path = tmp_path / f"{at % 2}.kv.safetensors"
        path.write_bytes(attempt.raw)
        assert read_packed(path).tensors, attempt.what
    assert bool(sound) == (name != "seal with fields missing or in another form")


def test_there_are_enough_of_each_class_and_no_two_are_the_same(
    world: World, attempts: dict[str, list[Attempt]], files: list[bytes]
) -> None:
    honest = {each.raw for each in world.honest}
    counts = {}
    for name, made in attempts.items():
        counts[name] = len({(each.raw, each.now, each.session, each.sender, each.before) for each in made})
        honestly = [each for each in made if each.raw in honest and not each.before]
        assert len(made) == counts[name], name
        assert all((each.now, each.session, each.sender) != HERE for each in honestly), name
    for name, attack in tampering_containers.ATTACKS.items():
        tried = [raw for _, raw in attack(files, Random(name))]
        assert not set(tried) & set(files), name
        counts[name] = len(set(tried))
    table = "\n".join(f"{number:5} {name}" for name, number in counts.items())
    assert min(counts.values()) >= FEWEST_OF_A_CLASS, table
    assert sum(counts.values()) >= FEWEST, table


def test_no_honest_file_is_refused(world: World, tmp_path: Path) -> None:
    refused, ledger, path = [], Ledger(tmp_path), tmp_path / "received.kv.safetensors"
    for each in world.honest:
        path.write_bytes(each.raw)
        try:  # As early and as late as can be, and recorded: no honest file has another one's nonce.
            admit(path, world.store, now=NOW - 300, session=each.session, expected_sender=SENDER)
            receive(path, world.store, ledger, now=NOW + 3599, session=each.session, expected_sender=SENDER)
        except UnspokenError as error:
            refused.append(f"{each.what}: {error!r}")
    assert not refused, f"{len(refused)} of {len(world.honest)} honest files refused:\n" + "\n".join(refused[:10])
    assert len({each.raw for each in world.honest}) == len(world.honest) >= FEWEST_HONEST


def test_what_is_received_is_what_was_sent(world: World, tmp_path: Path) -> None:
    plain, sealed = tmp_path / "plain.kv.safetensors", tmp_path / "sealed.kv.safetensors"
    for each in world.honest:
        plain.write_bytes(each.plain)
        sealed.write_bytes(each.raw)
        expected = read_cache(plain)
        found, trusted = receive(sealed, world.store, now=NOW, session=each.session)
        assert trusted.sender == SENDER
        assert found.manifest == expected.manifest
        for mine, theirs in zip(found.layers, expected.layers, strict=True):
            assert torch.equal(mine.keys, theirs.keys)
            assert torch.equal(mine.values, theirs.values)
            assert torch.equal(mine.positions, theirs.positions)


def test_the_command_line_refuses_one_of_each_class_too(
    world: World, attempts: dict[str, list[Attempt]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "received.kv.safetensors"
    monkeypatch.setattr("unspoken.cli.trusting.trust_store", lambda: world.store)

    def found(raw: bytes, now: int, attempt: Attempt) -> BaseException | None:
        path.write_bytes(raw)
        monkeypatch.setattr("unspoken.trust.receiving.time.time", lambda: float(now))
        sender = [] if attempt.sender is None else ["--from", attempt.sender]
        options = ["--trusted", "--once", "--session", attempt.session, *sender]
        return CliRunner().invoke(cli, ["verify", *options, str(path)]).exception

    for name, made in attempts.items():
        attempt = Random(name).choice(made)
        monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / name))  # Nonces are kept there.
        if attempt.before is not None:
            assert found(attempt.before, NOW, attempt) is None, attempt.what
        assert isinstance(found(attempt.raw, attempt.now, attempt), UnspokenError), attempt.what
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "honest"))
    honest = Attempt("honest", world.attacked[0].raw)
    assert found(honest.raw, NOW, honest) is None


@pytest.fixture(scope="module")
def files(world: World) -> Iterator[list[bytes]]:
    """Encrypted files: two of the same content and key, then others; chunks are small meanwhile."""
    draw = Random("salts")
    folder = world.folder / "encrypted"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encrypted, "CHUNK_BYTES", tampering_containers.CHUNK_BYTES)
        patch.setattr("unspoken.trust.encrypted.secrets.token_bytes", draw.randbytes)
        made = []
        for each in (world.attacked[0], *world.attacked[:4]):
            made.append(_encrypted(each, folder))
        yield made


def _encrypted(each: Honest, folder: Path) -> bytes:
    (folder / "file").write_bytes(each.raw)
    encrypted.encrypt_file(folder / "file", folder / "file.encrypted", tampering_containers.KEYS[0])
    return (folder / "file.encrypted").read_bytes()


@pytest.mark.parametrize("name", tampering_containers.ATTACKS)
def test_every_tampering_with_an_encrypted_file_is_refused_and_nothing_is_written(
    files: list[bytes], name: str, tmp_path: Path
) -> None:
    source, out = tmp_path / "file.encrypted", tmp_path / "out"
    tried = list(tampering_containers.ATTACKS[name](files, Random(name)))
    opened = []
    for what, raw in tried:
        source.write_bytes(raw)
        try:
            encrypted.decrypt_file(source, out, tampering_containers.KEYS[0])
            opened.append(what)
        except DecryptionFailed:
            assert [*tmp_path.iterdir()] == [source], what
    assert not opened, f"{name}: {len(opened)} of {len(tried)} opened: {opened[:10]}"


def test_no_honest_encrypted_file_is_refused(world: World, files: list[bytes], tmp_path: Path) -> None:
    source, out = tmp_path / "file.encrypted", tmp_path / "out"
    for raw, each in zip(files[1:], world.attacked, strict=False):
        source.write_bytes(raw)
        encrypted.decrypt_file(source, out, tampering_containers.KEYS[0])
        assert out.read_bytes() == each.raw
        with pytest.raises(DecryptionFailed):
            encrypted.decrypt_file(source, out, tampering_containers.KEYS[1])
