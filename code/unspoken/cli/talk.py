"""A session in the terminal: lines in, answers and what moved beneath them out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from unspoken.cachefile.header import printable
from unspoken.cli.common import human_bytes, require_text
from unspoken.errors import UnspokenError, UsageError
from unspoken.session.budget import used
from unspoken.session.events import HandedOver, Passage, Said

if TYPE_CHECKING:
    from unspoken.engines.protocol import Limits
    from unspoken.session import Exchange, Session

EVERYBODY, BAD_LINE = "all", 2
HELP = """\
@NAME words     say something to one agent
@all words      say something to all, one after the other
words           say something to whom the last line went
/who            what each agent has in mind
/fork NAME      go on in a fork, which is not kept
/rejoin         leave the fork; everybody takes in what was learnt there
/drop           leave the fork and forget it
/used           what the session has used
/quit           end"""


class Terminal:
    """Reads lines and lets agents answer.

    Args:
        session: The session.
        twin: The same by another channel, shown beside it.
        limits: When an answer ends.
        show_text: Whether the words behind a hand-over are shown.
        as_json: Whether each exchange is printed as a JSON object.
    """

    def __init__(
        self, session: Session, twin: Session | None, limits: Limits, *, show_text: bool, as_json: bool
    ) -> None:
        self._sessions, self._twins = [session], [twin]
        self._limits, self._show_text, self._as_json = limits, show_text, as_json
        self._to = session.agents[0]
        self._typing = _is_terminal() and not as_json

    def run(self) -> None:
        """Read lines until they end.

        Raises:
            SystemExit: With 2, if lines did not come from a terminal and one could not be answered.
        """
        failed = False
        for line in self._lines():
            try:
                if line == "/quit":
                    break
                self._line(line)
            except UnspokenError as error:
                failed = True
                click.echo(f"Error: {printable(error.problem)}\n{printable(error.hint)}", err=True)
            except KeyboardInterrupt:
                if not self._typing:
                    raise
                click.echo("\nNot said.", err=True)
        if failed and not self._typing:
            raise SystemExit(BAD_LINE)

    @property
    def _session(self) -> Session:
        return self._sessions[-1]

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = input(f"you to {self._to}> ") if self._typing else sys.stdin.readline()
            except EOFError:
                return
            if not line and not self._typing:
                return
            if line.strip():
                yield line.strip()

    def _line(self, line: str) -> None:
        require_text(line, "line")
        if line.startswith("/"):
            self._command(*line.split(maxsplit=1))
            return
        to, words = self._to, line
        if line.startswith("@"):
            to, _, words = line[1:].partition(" ")
            to = to.rstrip(":,")
        self._say(to, words)
        self._to = to

    def _say(self, to: str, words: str) -> None:
        session, twin = self._session, self._twins[-1]
        if to == EVERYBODY:
            for exchange in session.round(words, limits=self._limits):
                self._show(exchange, self._beside(twin, exchange), streamed=False)
            return
        exchange = session.say(to, words, limits=self._limits, hear=self._hear(to))
        self._show(exchange, self._beside(twin, exchange), streamed=self._typing)

    def _hear(self, to: str) -> Any:
        """Return what prints an answer while it is made; nothing where nobody watches."""
        if not self._typing:
            return None
        click.echo(f"{click.style(printable(to), bold=True)}: ", nl=False)
        return lambda _, piece: click.echo(printable(piece), nl=False)

    def _beside(self, twin: Session | None, exchange: Exchange) -> Exchange | None:
        said = exchange.said.passage
        return None if twin is None else twin.say(said.hearer or "", said.text, limits=self._limits)

    def _command(self, name: str, rest: str = "") -> None:
        match name:
            case "/help":
                click.echo(HELP)
            case "/who":
                for agent in self._session.agents:
                    mind = self._session.mind(agent)
                    size = human_bytes(mind.prefix.bytes_held())
                    click.echo(f"{printable(agent)}: {len(mind.held)} passages, {mind.columns} columns, {size}")
            case "/used":
                click.echo(_spent(self._session))
            case "/fork":
                twin = self._twins[-1]
                self._sessions.append(self._session.fork(rest))
                self._twins.append(None if twin is None else twin.fork(rest))
                click.echo(f"In the fork {printable(rest)}. It is not kept before /rejoin.", err=True)
            case "/rejoin" | "/drop" if len(self._sessions) > 1:
                self._leave(name)
            case _:
                raise UsageError(f"There is no command {name} here.", "/help lists them.")

    def _leave(self, how: str) -> None:
        if how == "/rejoin":  # First: what is refused leaves everybody in the fork.
            fork, twin, outer = self._session, self._twins[-1], self._twins[-2]
            handed = self._sessions[-2].rejoin(fork).handed
            if outer is not None and twin is not None:
                outer.rejoin(twin, outer.channel)
            for told in handed:
                self._show_moved(told, fork)
        self._sessions.pop()
        self._twins.pop()

    def _show(self, exchange: Exchange, beside: Exchange | None, *, streamed: bool) -> None:
        if self._as_json:
            told = {"events": msgspec.to_builtins(exchange.events)}
            if beside is not None:
                told["beside"] = msgspec.to_builtins(beside.events)
            click.echo(json.dumps(told, ensure_ascii=False))
            sys.stdout.flush()
            return
        self._show_answer(exchange, self._session, streamed=streamed)
        twin = self._twins[-1]
        if beside is not None and twin is not None:
            click.echo(f"  by {twin.channel} instead:")
            self._show_answer(beside, twin, streamed=False)

    def _show_answer(self, exchange: Exchange, session: Session, *, streamed: bool) -> None:
        replied = exchange.replied
        speaker = replied.passage.speaker
        click.echo("" if streamed else f"{click.style(printable(speaker), bold=True)}: {printable(exchange.text)}")
        for told in exchange.handed:
            self._show_moved(told, session)
        click.echo(
            click.style(
                f"  [{replied.tokens_prefilled} tokens read, {len(replied.token_ids)} written, first after "
                f"{replied.seconds_first_token:.2f} s, {replied.seconds:.2f} s]",
                dim=True,
            )
        )

    def _show_moved(self, told: HandedOver, session: Session) -> None:
        name = "" if told.recognised is None else f", recognised as {printable(told.recognised)}"
        read = f"{human_bytes(told.bytes_moved)}, {told.tokens_prefilled} tokens read, {told.seconds:.2f} s"
        moved = (
            f"  [{printable(told.sender)} to {printable(told.receiver)} by {told.channel}: "
            f"{len(told.passages)} passages, {told.tokens_skipped} columns, {read}{name}]"
        )
        click.echo(click.style(moved, dim=True))
        if self._show_text:
            for passage in _passages(session, told):
                click.echo(f"    {printable(passage.heading().strip())} {printable(passage.text)}")


def catch_up(session: Session, twin: Session, limits: Limits) -> None:
    """Say to a twin what the user has said in a session and the twin has not been told."""
    told = sum(isinstance(event, Said) for event in twin.log)
    for event in [event for event in session.log if isinstance(event, Said)][told:]:
        twin.say(event.passage.hearer or "", event.passage.text, limits=limits)


def _passages(session: Session, told: HandedOver) -> list[Passage]:
    """Return what was handed over, as it stands in the receiver's mind."""
    held = {each.passage.name: each.passage for each in session.mind(told.receiver).held if each.start < each.stop}
    messages = [passage for name, passage in held.items() if name.endswith(f">{told.receiver}")]
    return [held[name] for name in told.passages if name in held] or messages[-1:]


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _spent(session: Session) -> str:
    spent = used(session.log)
    return (
        f"{spent.exchanges} exchanges, {spent.tokens} tokens, {human_bytes(spent.bytes_moved)} moved, "
        f"{spent.seconds:.1f} s"
    )
