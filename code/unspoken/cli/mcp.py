"""`unspoken mcp`: hand over and recall as tools, for any client of the Model Context Protocol."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from unspoken.client import URL, Client
from unspoken.errors import EngineUnavailable, ServerRefused, UnspokenError

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

INSTRUCTIONS = (
    "Hand over what you understood as a cache instead of writing it out. `hand_over` lets the served model read a text "
    "once and returns a handle; `recall` answers a question from handles, yours or those another agent gave you."
)


@click.command()
@click.option("--url", default=URL, show_default=True, help="The server (`unspoken serve`).")
@click.option("--token", envvar="UNSPOKEN_TOKEN", help="The agent's token; better in UNSPOKEN_TOKEN than here.")
def mcp(url: str, token: str | None) -> None:
    """Offer hand_over, recall, verify and forget as MCP tools over standard input and output."""
    face(Tools(Client(url, token))).run("stdio")


@dataclass(frozen=True)
class Tools:
    """What a model may do.

    Attributes:
        client: The agent's access to a server.
    """

    client: Client

    def hand_over(self, text: str, to: list[str] | None = None) -> dict[str, Any]:
        """Let the model read a text once and keep its cache. Returns a handle that `recall` takes, for a while.

        Args:
            text: What was understood or found out.
            to: Names of other agents that may recall it; by default only you.
        """
        kept = self.client.complete(text, keep="content", to=to or [], max_tokens=1).kept
        if kept is None:
            raise ServerRefused("The server has kept nothing.", "Use a server of the same release.")
        return {"handle": kept.handle, "columns": kept.columns, "expires_at": kept.expires_at}

    def recall(self, question: str, handles: list[str], max_tokens: int = 256) -> dict[str, Any]:
        """Answer a question from caches that were handed over; their texts are not read again.

        Args:
            question: What is asked.
            handles: From `hand_over`, of yours or another agent's, in the order in which they shall be known.
            max_tokens: Most tokens of the answer.
        """
        made = self.client.complete(question, handles=handles, max_tokens=max_tokens)
        return {"answer": made.text, "tokens_skipped": made.skipped_tokens}

    def verify(self, handle: str) -> dict[str, Any]:
        """Tell whether a cache is whole, fits the served model, and who vouches for it."""
        return self.client.verify(handle)

    def forget(self, handle: str) -> str:
        """Remove a cache of yours."""
        self.client.delete(handle)
        return "forgotten"


def face(tools: Tools) -> MCPServer:
    """Return an MCP server with the tools.

    Raises:
        EngineUnavailable: If the library is missing.
    """
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        raise EngineUnavailable(
            "The tool face needs mcp, which is not installed.", "Run `pip install 'unspoken[mcp]'`."
        ) from error

    def told(tool: Callable[..., Any]) -> Callable[..., Any]:
        """Return a tool that tells the model what was refused and what to do."""

        @functools.wraps(tool)
        def call(*args: Any, **options: Any) -> Any:
            try:
                return tool(*args, **options)
            except UnspokenError as error:
                raise ToolError(str(error)) from error

        return call

    server = MCPServer("unspoken", instructions=INSTRUCTIONS)
    for tool in (tools.hand_over, tools.recall, tools.verify, tools.forget):
        server.add_tool(told(tool))
    return server
