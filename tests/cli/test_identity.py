"""Enrolling, verifying, identifying and showing agents on the command line, with a tiny model from a folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
import torch

from unspoken.cachefile import read_cache, write_cache
from unspoken.engines.fake import FakeEngine
from unspoken.identity.background import Background
from unspoken.identity.passages import passages
from unspoken.identity.profile import Profile

from .agents import KNOWN, STRANGER, World, make_world
from .program import FAKE, Program, clear, folder_of

SUFFIX = ".profile.safetensors"


@pytest.fixture(scope="module")
def world(
    tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> World:
    """Made once; nobody writes into it."""
    model = tiny_model("llama", 1, num_hidden_layers=3, max_position_embeddings=1024)
    return make_world(model, tiny_tokenizer(), tmp_path_factory.mktemp("world"))


@pytest.fixture
def home(unspoken: Program, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who knows how to tell agents on the model apart, and nobody yet."""
    shutil.copytree(world.home, tmp_path / "home")
    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def identity(unspoken: Program, home: Path, world: World) -> Program:
    """Call `unspoken identity` with the model."""
    return lambda command, *args: unspoken("identity", command, *args, "--model", world.model)


@pytest.fixture
def enrolled(home: Path, world: World) -> Path:
    """The folder of the three that are known, each enrolled from four files."""
    return Path(shutil.copytree(world.profiles, home / "identity" / world.spec.weights))


def test_an_agent_is_enrolled_from_files_and_then_recognised(identity: Program, home: Path, world: World) -> None:
    told = identity("enroll", "kiran", *(world.file("kiran", at) for at in range(4)))
    assert (told.code, told.err) == (0, "")
    folder = home / "identity" / world.spec.weights
    assert told.out.startswith("kiran: enrolled with 4 caches of 400 columns.\n")
    assert str(folder) in told.out
    assert folder_of(folder) == [f"kiran{SUFFIX}"]
    made, expected = (Profile.read(each / f"kiran{SUFFIX}") for each in (folder, world.profiles))
    assert made.info == expected.info
    torch.testing.assert_close(made.signature, expected.signature, atol=1e-3, rtol=0)
    assert identity("verify", "kiran", world.file("kiran")).code == 0


@pytest.mark.usefixtures("enrolled")
def test_a_claim_is_accepted_or_not_and_the_exit_code_says_so(identity: Program, world: World) -> None:
    right = identity("verify", "kiran", world.file("kiran"))
    assert (right.code, right.err) == (0, "")
    assert right.out.startswith(f"{world.file('kiran')}: kiran\n")
    assert "Statistical evidence, no proof" in right.out
    for whose in ("esra", STRANGER):
        wrong = identity("verify", "kiran", world.file(whose))
        assert (wrong.code, wrong.err) == (1, "")
        assert wrong.out.startswith(f"{world.file(whose)}: not kiran\n")
    clear(identity("verify", "nils", world.file("kiran")), "There is no profile of nils")


@pytest.mark.usefixtures("enrolled")
def test_known_agents_are_named_and_others_are_unknown(identity: Program, world: World) -> None:
    for name in KNOWN:
        told = identity("identify", world.file(name))
        assert (told.code, told.out.splitlines()[0]) == (0, f"{world.file(name)}: {name}")
        assert "100 columns, tokens disclosed" in told.out
    stranger = identity("identify", world.file(STRANGER))
    assert (stranger.code, stranger.out.splitlines()[0]) == (0, f"{world.file(STRANGER)}: unknown")


@pytest.mark.usefixtures("enrolled")
def test_json_tells_what_a_decision_rests_on(identity: Program, world: World) -> None:
    found = identity("identify", world.file("esra"), "--json").data
    assert found.keys() == {"file", "name", "matches", "threshold", "columns", "tokens"}
    assert (found["file"], found["name"]) == (str(world.file("esra")), "esra")
    assert (found["columns"], found["tokens"]) == (100, "disclosed")
    assert {match["name"] for match in found["matches"]} == set(KNOWN)
    ratios = [match["llr"] for match in found["matches"]]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] >= found["threshold"] > ratios[1]
    for whose, code in (("esra", 0), ("milan", 1)):
        told = identity("verify", "esra", world.file(whose), "--json")
        assert (told.code, told.data["accepted"], told.data["claimed"]) == (code, code == 0, "esra")
        assert told.data["name"] == whose
        assert told.data["matches"] == identity("identify", world.file(whose), "--json").data["matches"]


@pytest.mark.usefixtures("enrolled")
def test_a_likelier_agent_takes_a_claim_away(identity: Program, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the threshold or not: what is more probably another enrolled agent's is not the claimed one's."""
    from unspoken.identity.background import BackgroundInfo

    monkeypatch.setattr(BackgroundInfo, "threshold", lambda self, profiles: -1e9)
    assert identity("verify", "esra", world.file("esra")).code == 0
    told = identity("verify", "esra", world.file("milan"), "--json")
    assert (told.code, told.data["name"], told.data["accepted"]) == (1, "milan", False)


@pytest.mark.usefixtures("enrolled")
def test_a_file_without_token_ids_is_recognised(identity: Program, world: World, tmp_path: Path) -> None:
    silent = tmp_path / "silent.kv.safetensors"
    write_cache(read_cache(world.file("milan")).without_tokens(), silent, "int8")
    found = identity("identify", silent, "--json").data
    assert (found["name"], found["tokens"]) == ("milan", "recovered")


def test_agents_are_enrolled_from_a_card_or_a_folder_of_cards(
    identity: Program, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tuple(each[:100] for each in passages()[:4])
    monkeypatch.setattr("unspoken.identity.recognition.passages", lambda: short)
    one, every = tmp_path / "one", tmp_path / "every"
    alone = identity("enroll", "--card", world.cards / "kiran.yaml", "--profiles", one, "--json").data
    assert alone["profiles"] == [str(one / f"kiran{SUFFIX}")]
    assert alone["seconds"] > 0
    told = identity("enroll", "--card", world.cards, "--profiles", every)
    assert told.code == 0, told.err
    assert [line.split(":")[0] for line in told.out.splitlines()[:-1]] == list(KNOWN)
    assert folder_of(every) == [f"{name}{SUFFIX}" for name in KNOWN]
    assert (one / f"kiran{SUFFIX}").read_bytes() == (every / f"kiran{SUFFIX}").read_bytes()
    for name in KNOWN:
        assert identity("identify", world.file(name), "--profiles", every, "--json").data["name"] == name
    assert identity("verify", "kiran", world.file("esra"), "--profiles", one).code == 1


def test_enrolling_again_replaces_the_earlier_profile(identity: Program, home: Path, world: World) -> None:
    path = home / "identity" / world.spec.weights / f"esra{SUFFIX}"
    assert identity("enroll", "esra", world.file("esra", 0)).code == 0
    first = path.read_bytes()
    assert identity("enroll", "esra", world.file("esra", 1)).code == 0
    assert path.read_bytes() != first
    assert folder_of(path.parent) == [path.name]


def test_who_is_enrolled_is_listed(unspoken: Program, identity: Program, world: World, tmp_path: Path) -> None:
    assert unspoken("identity", "list").out.startswith("Nobody is enrolled.")
    assert unspoken("identity", "list", "--json").data == []
    for name, folder in (("esra", ()), ("kiran", ()), ("milan", ("--profiles", tmp_path / "apart"))):
        assert identity("enroll", name, world.file(name, 0), world.file(name, 1), *folder).code == 0
    told = unspoken("identity", "list").out.splitlines()
    assert told == [f"{name:<16} {world.spec.name}, 2 caches, 200 columns" for name in ("esra", "kiran")]
    row = {"name": "milan", "model": world.spec.name, "caches": 2, "columns": 200}
    assert unspoken("identity", "list", "--profiles", tmp_path / "apart", "--json").data == [row]


@pytest.mark.usefixtures("enrolled")
def test_what_makes_an_agent_recognisable_is_shown(identity: Program, world: World, tmp_path: Path) -> None:
    out = tmp_path / "esra.svg"
    told = identity("show", "esra", "--out", out)
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert lines[0] == f"esra: {world.spec.name}, enrolled with 4 caches of 400 columns"
    assert lines[1].startswith("error rates of this model's background: card 0.0%, hinted 0.0%")
    assert [line.split()[0] for line in lines[3:7]] == ["layer", "0", "1", "2"]
    assert lines[4].split() == ["0"]  # It knows the token and no agent.
    assert "█" in told.out
    picture = ElementTree.fromstring(out.read_text())  # noqa: S314 - made right above
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert picture.find(".//*[@id='portrait-axes_2']") is not None  # Keys and values side by side.
    assert "<!-- What makes esra recognisable -->" in out.read_text()
    data = identity("show", "esra", "--json").data
    assert (data["name"], data["caches"], data["columns"], data["layers"]) == ("esra", 4, 400, [1, 2])
    strength = data["strength"]
    assert [len(strength), len(strength[0]), len(strength[0][0])] == [3, 2, 2]
    assert strength[0] == [[0, 0], [0, 0]]
    assert min(min(part) for layer in strength[1:] for part in layer) > 0


@pytest.fixture
def foreign(enrolled: Path, tmp_path: Path, world: World, made: Path) -> dict[str, Path]:
    """Everything somebody may give by mistake."""
    broken, others, card = tmp_path / "broken", tmp_path / "others", tmp_path / "card.yaml"
    broken.mkdir()
    others.mkdir()
    (tmp_path / "none").mkdir()
    (broken / f"esra{SUFFIX}").write_bytes((enrolled / f"esra{SUFFIX}").read_bytes()[:-9])
    (broken / f"kiran{SUFFIX}").write_bytes(world.file("esra").read_bytes())
    profile, shape, spec = Profile.read(enrolled / f"esra{SUFFIX}"), (2, 2, 2, 8), FakeEngine().spec
    stranger = msgspec.structs.replace(profile.info, spec=spec)
    Profile(stranger, profile.signature, torch.ones(shape), torch.ones(shape)).write(others / f"esra{SUFFIX}")
    card.write_text("name: lyra\n")
    (tmp_path / "odd.yaml").write_text("name: ../lyra\ncard: You are Lyra.\n")
    write_cache(read_cache(world.file("esra")).slice(0, 9), tmp_path / "short.kv.safetensors")
    return {
        "ESRA": world.file("esra"), "CARDS": world.cards, "CARD": card, "ODD": tmp_path / "odd.yaml",
        "NONE": tmp_path / "none", "BROKEN": broken, "OTHERS": others, "FAKE": made / "good.kv.safetensors",
        "DOC": made / "doc.txt", "MISSING": tmp_path / "missing", "SHORT": tmp_path / "short.kv.safetensors",
        "PROFILE": enrolled / f"esra{SUFFIX}", "KIRAN": world.cards / "kiran.yaml",
    }  # fmt: skip


BAD: dict[str, tuple[str, str]] = {
    "nobody is enrolled": ("identify ESRA --profiles NONE", "There is no profile of anybody"),
    "no such folder": ("identify ESRA --profiles MISSING", "There is no profile of anybody"),
    "a name with a path": ("verify ../esra ESRA", "There is no profile of ../esra"),
    "a profile that ends early": ("verify esra ESRA --profiles BROKEN", "is no profile"),
    "a cache for a profile": ("verify kiran ESRA --profiles BROKEN", "is no profile"),
    "another model's profile": ("identify ESRA --profiles OTHERS", "does not fit"),
    "another model's cache": ("identify FAKE", "does not fit"),
    "a text for a cache": ("identify DOC", "claims a header of"),
    "a profile for a cache": ("verify esra PROFILE", "manifest"),
    "no such cache": ("identify MISSING", "cannot be read"),
    "too short a cache": ("verify esra SHORT", "9 content columns, too few"),
    "another model's cache to enrol": ("enroll nils FAKE", "does not fit"),
    "one bad cache of two": ("enroll nils ESRA SHORT", "9 content columns, too few"),
    "a name that is no file's": ("enroll ../nils ESRA", "is no name"),
    "a card's name that is no file's": ("enroll --card KIRAN --card ODD", "is no name"),
    "a card twice": ("enroll --card KIRAN --card CARDS", "Several cards are of 'kiran'"),
    "a card without a card": ("enroll --card CARD", "is none: Object missing required field `card`"),
    "a text for a card": ("enroll --card DOC", "is none: Expected `object`"),
    "no card in a folder": ("enroll --card NONE", "There is no YAML card in"),
    "profiles where no folder can be": ("enroll esra ESRA --profiles DOC/deeper", "cannot be written: Not a directory"),
    "showing nobody": ("show nils", "There is no profile of nils"),
    "showing what is no profile": ("show kiran --profiles BROKEN", "is no profile"),
    "a picture nowhere": ("show esra --out MISSING/esra.svg", "cannot be written: No such file"),
    "listing what is no profile": ("list --profiles BROKEN", "is no profile"),
    "listing nobody": ("list --profiles NONE", "There is no profile of anybody"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_cannot_work_is_one_clear_error(
    unspoken: Program, world: World, foreign: dict[str, Path], tmp_path: Path, name: str
) -> None:
    command, problem = BAD[name]
    args = re.sub(r"\b[A-Z]+\b", lambda word: str(foreign[word[0]]), command).split()
    before = folder_of(tmp_path)
    model = () if args[0] == "list" else ("--model", world.model)
    told = unspoken("identity", *args, *model)
    clear(told, problem)
    assert told.out == ""
    assert folder_of(tmp_path) == before


USAGE = {
    "nothing": "enroll",
    "a name and a card": "enroll esra ESRA --card KIRAN",
    "a name alone": "enroll esra",
    "a card and its files": "enroll --card KIRAN esra ESRA",
    "a missing card": "enroll --card MISSING",
    "no cache": "verify esra",
    "nobody": "show",
    "a file for a folder": "identify ESRA --profiles DOC",
    "too few agents to learn from": "prepare --agents 5",
    "a name that is no file's": "enroll ../nils ESRA",
    "a card's name that is no file's": "enroll --card ODD",
}


@pytest.mark.parametrize("name", sorted(USAGE))
def test_wrong_arguments_are_told_before_a_model_is_loaded(
    unspoken: Program, foreign: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("unspoken.api.load_gated", lambda *_, **__: pytest.fail("a model was loaded"))
    args = re.sub(r"\b[A-Z]+\b", lambda word: str(foreign[word[0]]), USAGE[name]).split()
    told = unspoken("identity", *args)
    assert (told.code, told.out) == (2, "")
    assert told.err.count("Error: ") == 1
    assert "Traceback" not in told.err


def test_a_model_that_nothing_is_known_about_is_told(
    unspoken: Program, identity: Program, home: Path, world: World, made: Path
) -> None:
    clear(unspoken("identity", "enroll", "esra", made / "good.kv.safetensors", *FAKE), "Nothing is known yet about")
    (background,) = (home / "identity").glob("*.background.safetensors")
    background.write_bytes(background.read_bytes()[:-1])
    clear(identity("enroll", "esra", world.file("esra")), "is no background")


@pytest.mark.usefixtures("enrolled")
def test_profiles_of_an_earlier_background_are_refused(identity: Program, home: Path, world: World) -> None:
    (path,) = (home / "identity").glob("*.background.safetensors")
    known = Background.read(path, world.spec)
    Background(msgspec.structs.replace(known.info, agents=99), known.projection, known.impostors).write(path)
    clear(identity("identify", world.file("esra")), "and they do not measure alike")
    assert identity("show", "esra").code == 0
    for name in KNOWN:
        assert identity("enroll", name, world.file(name, 0)).code == 0
    assert identity("verify", "esra", world.file("esra")).code == 0


def test_an_agent_of_one_cache_has_no_picture(identity: Program, world: World, tmp_path: Path) -> None:
    assert identity("enroll", "esra", world.file("esra")).code == 0
    told = identity("show", "esra", "--out", tmp_path / "esra.svg")
    clear(told, "esra was enrolled with one cache")
    assert told.out == ""
    assert not (tmp_path / "esra.svg").exists()


def test_a_name_cannot_steer_the_terminal(identity: Program, unspoken: Program, enrolled: Path, world: World) -> None:
    path = enrolled / f"esra{SUFFIX}"
    profile = Profile.read(path)
    evil = msgspec.structs.replace(profile.info, name="\x1b[2Jesra\u202e", error_rates={"\x1b[2J": 0.5})
    Profile(evil, profile.signature, profile.deviation, profile.spread).write(path)
    told = [identity("identify", world.file("esra")), unspoken("identity", "list"), identity("show", "esra")]
    for each in told:
        assert each.code == 0, each.err
        assert all(line.isprintable() for line in each.out.splitlines()), each.out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import io, json, sys\n"
        "from contextlib import redirect_stdout, suppress\n"
        "from unspoken.cli import main\n"
        "for command in ('enroll', 'verify', 'identify', 'list', 'show', 'evaluate', 'prepare'):\n"
        "    sys.argv[1:] = ['identity', command, '--help']\n"
        "    with redirect_stdout(io.StringIO()), suppress(SystemExit): main()\n"
        "heavy = ('torch', 'numpy', 'transformers', 'sklearn', 'matplotlib')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.usefixtures("enrolled")
def test_a_long_path_does_not_push_the_verdict_out(identity: Program, world: World, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a" * 100] * 5)
    deep.mkdir(parents=True)
    copy = shutil.copy(world.file("esra"), deep / "a.kv.safetensors")
    assert identity("identify", copy).out.splitlines()[0].endswith("...: esra")
    assert identity("verify", "kiran", copy).out.splitlines()[0].endswith("...: not kiran")
