"""`unspoken chat`: a session of several agents in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from unspoken.cli.common import model_options, opened, quick_start, require_text, shelf
from unspoken.cli.passphrases import KEY_VARIABLE, asked
from unspoken.cli.recognised import recogniser
from unspoken.cli.trusting import keys_folder
from unspoken.errors import UsageError

if TYPE_CHECKING:
    from unspoken.engines.protocol import Engine
    from unspoken.session import Budget
    from unspoken.session.config import AgentConfig, SessionConfig
    from unspoken.session.folder import SessionFolder
    from unspoken.trust.keys import SigningKey

# What is written down with a session, and cannot be another one when it goes on.
SETTLED = ("agents", "channel", "topology", "links", "model", "engine")


@click.command()
@click.option(
    "--agents", default="lyra,vera,cc", show_default=True, help="Names or YAML cards, with commas: lyra,cards/vera.yaml"
)
@click.option("--channel", default="kv", show_default=True, help="How they hand over: kv, kv+int8, full-text, text@32.")
@click.option("--topology", default="table", show_default=True, help="Who hears whom: table, relay, fan-out, critic.")
@click.option("--link", "links", multiple=True, help="Another channel for one link: lyra:cc=text@32. Repeatable.")
@click.option("--beside", help="Hold the same session by this channel too, and show both.")
@click.option("--session", "name", help="Keep the session under this name, or go on with the one of this name.")
@click.option("--sessions", type=click.Path(path_type=Path), help="Folder where sessions are kept.")
@click.option("--show-text", is_flag=True, help="Show the words behind what is handed over.")
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(min=1), help="Most tokens of an answer.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(min=0), help="0 draws nothing.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the draws.")
@click.option("--budget", help="What it may use: exchanges=20,tokens=8000,bytes=50000000,seconds=600.")
@click.option("--recognise", is_flag=True, help="Say whose columns arrive, by the profiles of `unspoken identity`.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each exchange, one a line.")
@model_options
@click.pass_context
def chat(
    context: click.Context,
    agents: str,
    channel: str,
    topology: str,
    links: tuple[str, ...],
    beside: str | None,
    name: str | None,
    sessions: Path | None,
    show_text: bool,
    tokens: int,
    temperature: float,
    seed: int,
    budget: str | None,
    recognise: bool,
    as_json: bool,
    model: str,
    engine: str,
    loading: dict[str, Any],
) -> None:
    """Talk with agents that know what the others know, without words passing between them.

    Lines are read from the terminal or standard input. `@cc words` speaks to cc, `@all words` to all in turn; a line
    without a name goes to whom the last one went. `/help` lists what else there is.
    """
    for each in (agents, *links):
        require_text(each, "agent's name")
    with quick_start():
        from unspoken.cli.talk import Terminal, catch_up
        from unspoken.engines.protocol import Limits
    limits, spending = Limits(tokens, temperature=temperature, seed=seed), read_budget(budget)
    wanted = _config(agents, channel, topology, links, model, engine)
    with ExitStack() as stack:
        folder = stack.enter_context(_folder(name, sessions)) if name else None
        config = wanted if folder is None else _settled(context, wanted, folder)
        engines = _engines(config, loading)
        config = config.on(engines)
        session = config.session(engines, spending, recogniser(engines[0]) if recognise else None, shelf())
        twin = None if beside is None else session.anew(channel=beside)
        if folder is not None:
            folder.keys = _keys(config)
            if not folder.exists():
                folder.begin(config)
            lost = folder.resume(session)
            if lost is not None:
                click.echo(f"Read again from the log: {lost}", err=True)
        if twin is not None:
            catch_up(session, twin, limits)
        Terminal(session, twin, limits, show_text=show_text, as_json=as_json).run()


def read_budget(text: str | None) -> Budget:
    """Return the budget of `exchanges=20,bytes=5000`.

    Raises:
        UsageError: If it is none.
    """
    from unspoken.session import Budget

    fields = {"exchanges": "exchanges", "tokens": "tokens", "bytes": "bytes_moved", "seconds": "seconds"}
    given: dict[str, Any] = {}
    for part in (text or "").split(",") if text is not None else ():
        name, _, value = part.strip().partition("=")
        try:
            number = float(value) if name == "seconds" else int(value)
            sound = name in fields and fields[name] not in given and 0 < number < float("inf")
        except ValueError:
            sound = False
        if not sound:
            raise UsageError(
                f"'{part}' is no part of a budget.", "Write exchanges=20,tokens=8000,bytes=5000,seconds=60."
            )
        given[fields[name]] = number
    return Budget(**given)


def read_links(links: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    """Return (sender, receiver, channel) of links such as `lyra:cc=text@32`.

    Raises:
        UsageError: If one is none, or two are of the same agents.
    """
    found = []
    for link in links:
        ends, _, channel = link.partition("=")
        sender, _, receiver = ends.partition(":")
        if not (sender.strip() and receiver.strip() and channel.strip()):
            raise UsageError(f"'{link}' is no link.", "Write --link lyra:cc=text@32.")
        found.append((sender.strip(), receiver.strip(), channel.strip()))
    if len({link[:2] for link in found}) != len(found):
        raise UsageError("Two channels are given for one link.", "Give one channel for each link.")
    return tuple(found)


def _config(agents: str, channel: str, topology: str, links: Sequence[str], model: str, engine: str) -> SessionConfig:
    from unspoken.session import read_card
    from unspoken.session.config import AgentConfig, SessionConfig

    def agent(given: str) -> AgentConfig:
        if not given.endswith((".yaml", ".yml")):
            return AgentConfig(given, "", model, engine)
        card = read_card(given)
        return AgentConfig(
            card.name, card.system(Path(given).parent), card.model or model, card.engine or engine, key=card.key
        )

    given = [each.strip() for each in agents.split(",") if each.strip()]
    return SessionConfig(tuple(map(agent, given)), channel, topology, read_links(links))


def _keys(config: SessionConfig) -> dict[str, SigningKey]:
    """Return the key of each agent whose card names one."""
    from unspoken.trust.keys import load_key

    def loaded(key: str) -> SigningKey:
        return load_key(key, keys_folder(), lambda: asked(KEY_VARIABLE, f"key '{key}'"))

    return {agent.name: loaded(agent.key) for agent in config.agents if agent.key is not None}


def _folder(name: str, sessions: Path | None) -> SessionFolder:
    from unspoken.modelstore import home
    from unspoken.session.folder import SessionFolder

    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not plain.isalnum() or name.startswith("."):
        raise UsageError(
            f"'{name}' cannot be the name of a session.",
            "Use letters, digits, '-', '_' and '.': its folder has this name.",
        )
    return SessionFolder((sessions or home() / "sessions") / name)


def _settled(context: click.Context, wanted: SessionConfig, folder: SessionFolder) -> SessionConfig:
    """Return what the session in a folder is made of; options that say otherwise are refused."""
    if not folder.exists():
        return wanted
    kept = folder.config()
    given = [
        each for each in SETTLED if context.get_parameter_source(each) not in (None, click.core.ParameterSource.DEFAULT)
    ]
    plain = tuple(msgspec.structs.replace(agent, weights=None) for agent in kept.agents)
    if given and msgspec.structs.replace(kept, agents=plain) != wanted:
        raise UsageError(
            f"The session in {folder.path} was begun with other agents, models or channels.",
            f"Leave out --{', --'.join(given)}, or begin another session.",
        )
    return kept


def _engines(config: SessionConfig, loading: dict[str, Any]) -> list[Engine]:
    """Return the model of each agent; those on one model share it."""
    loaded: dict[tuple[str, str], Engine] = {}
    for agent in config.agents:
        key = (agent.model, agent.engine)
        if key not in loaded:
            loaded[key] = opened(agent.model, agent.engine, loading)[0]
    return [loaded[agent.model, agent.engine] for agent in config.agents]
