"""`unspoken chat`: lines in, answers and what moved beneath them out, over the end of the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .program import FAKE, Program, Result, clear

TOLD, ASKED = "The old mill is run by Anna.", "Who runs the old mill?"
TALK = f"{TOLD}\n@cc {ASKED}\n".encode()


def events(told: Result) -> list[list[dict[str, Any]]]:
    """Return the events of each exchange."""
    return [json.loads(line)["events"] for line in told.out.splitlines()]


def answers(told: Result) -> list[str]:
    """Return the answers."""
    return [each[-1]["passage"]["text"] for each in events(told)]


def test_a_fact_told_to_the_first_agent_is_answered_by_the_last(unspoken: Program) -> None:
    told = unspoken("chat", *FAKE, stdin=TALK)
    assert told.code == 0
    lines = told.out.splitlines()
    assert lines[0] == "lyra: unknown"
    assert lines[2] == "cc: Anna"
    assert lines[3].startswith("  [lyra to cc by kv: 2 passages, 35 columns, 4.6 kB, 27 tokens read, ")
    assert TOLD not in told.out
    shown = unspoken("chat", *FAKE, "--show-text", stdin=TALK)
    assert f"    lyra was told: {TOLD}\n    lyra said: unknown\n" in shown.out


@pytest.mark.parametrize("channel", ["full-text", "text", "none"])
def test_the_same_by_another_channel_is_shown_beside(unspoken: Program, channel: str) -> None:
    told = unspoken("chat", *FAKE, "--beside", channel, "--json", stdin=TALK)
    last = json.loads(told.out.splitlines()[-1])
    assert last["events"][-1]["passage"]["text"] == "Anna"
    assert last["beside"][-1]["passage"]["text"] == ("unknown" if channel == "none" else "Anna")
    assert [each[1]["channel"] for each in (last["events"], last["beside"])] == ["kv", channel]
    assert f"  by {channel} instead:" in unspoken("chat", *FAKE, "--beside", channel, stdin=TALK).out


def test_lines_go_to_whom_they_name_or_to_the_last(unspoken: Program) -> None:
    talk = b"one\n@vera two\n\nthree\n@cc: four\n@all five\nsix\n/quit\nseven\n"
    said = [
        (each[0]["passage"]["hearer"], each[0]["passage"]["text"])
        for each in events(unspoken("chat", *FAKE, "--json", stdin=talk))
    ]
    assert said[:4] == [("lyra", "one"), ("vera", "two"), ("vera", "three"), ("cc", "four")]
    assert [hearer for hearer, _ in said[4:]] == ["lyra", "vera", "cc", "lyra", "vera", "cc"]
    assert [said[4][1], said[7][1]] == ["five", "six"]


def test_commands_tell_and_fork_and_join(unspoken: Program) -> None:
    talk = f"/who\n/fork idea\n@cc {TOLD}\n/used\n/rejoin\n@cc {ASKED}\n/fork other\n/drop\n/help\n/used\n".encode()
    told = unspoken("chat", *FAKE, stdin=talk)
    assert told.code == 0
    assert "lyra: 0 passages, " in told.out
    assert "[cc to cc by kv: 2 passages, 35 columns" in told.out
    assert "cc: Anna\n" in told.out
    assert "/rejoin         leave the fork" in told.out
    assert [line.split(" exchange")[0] for line in told.out.splitlines() if " exchanges, " in line] == ["1", "2"]
    assert "It is not kept before /rejoin." in told.err


def test_a_session_is_kept_and_gone_on_with(unspoken: Program, tmp_path: Path) -> None:
    where = ("--session", "talk", "--sessions", tmp_path)
    assert answers(unspoken("chat", *FAKE, "--channel", "kv+int8", "--json", *where, stdin=TALK)) == ["unknown", "Anna"]
    # What it is made of need not be said again.
    told = unspoken("chat", "--json", *where, stdin=f"@vera {ASKED}\n".encode())
    assert events(told)[0][1]["channel"] == "kv+int8"
    assert [each["passages"] for each in events(told)[0][1:-1]] == [
        [
            "1:user",
            "1:lyra",
        ],
        ["2:user", "2:cc"],
    ]
    # Those beside are told what they have not heard.
    beside = unspoken("chat", "--json", "--beside", "full-text", *where, stdin=f"@vera {ASKED}\n".encode())
    assert json.loads(beside.out)["beside"][0]["passage"]["name"] == "4:user"
    clear(unspoken("chat", "--channel", "kv", *where), "was begun with other agents, models or channels")
    assert unspoken("chat", "--channel", "kv+int8", *FAKE, *where).code == 0


def test_a_killed_session_is_gone_on_with(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "unspoken", "chat", *FAKE, "--json"),
        *("--session", "talk", "--sessions", str(tmp_path)),
    ]
    environment = os.environ | {"UNSPOKEN_HOME": str(tmp_path / "home")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(f"{TOLD}\n".encode())
        running.stdin.flush()
        assert json.loads(running.stdout.readline())["events"][-1]["passage"]["text"] == "unknown"
        second = subprocess.run(command, input=b"", capture_output=True, env=environment, check=False)
        assert second.returncode == 2
        assert b"is open in another process" in second.stderr
        running.send_signal(signal.SIGKILL)
    resumed = subprocess.run(command, input=f"@cc {ASKED}\n".encode(), capture_output=True, env=environment, check=True)
    told = json.loads(resumed.stdout)["events"]
    assert told[-1]["passage"]["text"] == "Anna"
    assert told[1]["passages"] == ["1:user", "1:lyra"]


def test_lost_columns_are_told(unspoken: Program, tmp_path: Path) -> None:
    where = ("--session", "talk", "--sessions", tmp_path)
    unspoken("chat", *FAKE, *where, stdin=TALK)
    next((tmp_path / "talk" / "columns").iterdir()).unlink()
    told = unspoken("chat", "--json", *where, stdin=f"@vera {ASKED}\n".encode())
    assert told.err.startswith("Read again from the log: The cache file ")
    assert told.code == 0


def test_a_line_that_cannot_be_said_is_told_and_the_rest_goes_on(unspoken: Program) -> None:
    talk = f"@bob hi\n@cc\n/dance\n/rejoin\n/fork\n{TOLD}\n@cc {ASKED}\n".encode()
    told = unspoken("chat", *FAKE, stdin=talk)
    assert told.code == 2
    assert "cc: Anna\n" in told.out
    errors = [line for line in told.err.splitlines() if line.startswith("Error: ")]
    assert errors == [
        "Error: There is no agent 'bob' in this session.",
        "Error: Nothing is said.",
        "Error: There is no command /dance here.",
        "Error: There is no command /rejoin here.",
        "Error: '' cannot be the name of a fork of this session.",
    ]


def test_in_a_terminal_every_answer_is_seen(unspoken: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter([TOLD, f"@all {ASKED}", "/quit"])
    monkeypatch.setattr("unspoken.cli.talk._is_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    told = unspoken("chat", *FAKE)
    assert told.code == 0
    answers = [line for line in told.out.splitlines() if line.split(":")[0] in ("lyra", "vera", "cc")]
    assert [line.split(":")[0] for line in answers] == ["lyra", "lyra", "vera", "cc"]
    assert answers[0] == "lyra: unknown"


def test_what_cannot_be_rejoined_leaves_the_fork_as_it_is(unspoken: Program) -> None:
    talk = f"/fork idea\n@cc {TOLD}\n/rejoin\n@cc {ASKED}\n/drop\n/who\n".encode()
    told = unspoken("chat", *FAKE, "--budget", "exchanges=1", stdin=b"@lyra Hi.\n" + talk)
    assert told.code == 2
    # The session had used what it may before the fork: nothing can be said there, nor taken in from it; it can be left.
    assert told.err.count("Error: The session has used 1 exchanges of 1.") == 3
    assert "There is no command" not in told.err


def test_a_budget_ends_it(unspoken: Program) -> None:
    told = unspoken("chat", *FAKE, "--budget", "exchanges=1,bytes=5", stdin=TALK)
    assert told.code == 2
    assert "Error: The session has used 1 exchanges of 1." in told.err


def test_agents_come_from_cards(unspoken: Program, tmp_path: Path) -> None:
    card = tmp_path / "ann.yaml"
    card.write_text("name: ann\ncard: You are Ann.\nmodel: other\n")
    told = unspoken("chat", "--agents", f"{card},bob", *FAKE, "--channel", "full-text", "--json", stdin=b"@bob Hi.\n")
    assert events(told)[0][0]["passage"]["hearer"] == "bob"
    # A cache of one model is none of another's.
    refused = unspoken("chat", "--agents", f"{card},bob", *FAKE, stdin=b"Hi.\n@bob Hi.\n")
    assert refused.code == 2
    assert "The cache was made by 'other' and does not fit 'smollm2-135m'" in refused.err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--agents", "lyra"), "two or more agents"),
        (("--agents", "lyra,lyra"), "two or more agents"),
        (("--agents", "missing.yaml,cc"), "The card missing.yaml cannot be read"),
        (("--agents", "lyra,\udcff"), "The agent's name is not UTF-8 text"),
        (("--channel", "telepathy"), "no channel named 'telepathy'"),
        (("--beside", "telepathy"), "no channel named 'telepathy'"),
        (("--topology", "ring"), "no topology 'ring'"),
        (("--topology", "critic"), "is for 2 agents, found 3"),
        (("--link", "lyra:cc"), "'lyra:cc' is no link"),
        (("--link", "lyra:bob=kv"), "no link from lyra to bob"),
        (("--link", "lyra:cc=kv", "--link", "lyra:cc=text"), "Two channels are given for one link"),
        (("--budget", ""), "'' is no part of a budget"),
        (("--budget", "tokens=0"), "'tokens=0' is no part"),
        (("--budget", "tokens=5,tokens=6"), "'tokens=6' is no part"),
        (("--budget", "minutes=5"), "'minutes=5' is no part"),
        (("--budget", "seconds=inf"), "'seconds=inf' is no part"),
        (("--session", "../talk"), "'../talk' cannot be the name of a session"),
        (("--session", ".."), "'..' cannot be the name of a session"),
        (("--recognise",), "There is no profile of anybody in"),
    ],
)
def test_options_that_cannot_be_are_refused(unspoken: Program, options: tuple[str, ...], problem: str) -> None:
    clear(unspoken("chat", *FAKE, *options, stdin=TALK), problem)


def test_agents_whose_cards_name_a_key_seal_what_is_kept(unspoken: Program, tmp_path: Path) -> None:
    card = tmp_path / "lyra.yaml"
    card.write_text("name: lyra\ncard: You are Lyra.\nkey: lyra-2026\n")
    where = ("--agents", f"{card},cc", "--session", "talk", "--sessions", tmp_path)
    told = unspoken("chat", *FAKE, *where, stdin=TALK)
    assert "Error: There is no private key 'lyra-2026'" in told.err
    assert unspoken("keys", "create", "lyra-2026").code == 0
    assert unspoken("chat", *FAKE, *where, stdin=TALK).code == 0
    assert unspoken("chat", *FAKE, *where, stdin=b"@lyra Who?\n").err == ""
    first, *_, last = sorted((tmp_path / "talk" / "columns").iterdir())
    assert "'lyra', key" in unspoken("inspect", first).out
    first.write_bytes(last.read_bytes())  # By the right key, and sealed for another place.
    again = unspoken("chat", *FAKE, *where, stdin=TALK)
    assert again.out == ""
    assert "is not as lyra has kept it" in again.err
