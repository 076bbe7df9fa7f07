"""`unspoken mcp`: hand over and recall as tools, for any client of the Model Context Protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from unspoken.client import URL, Client
from unspoken.errors import EngineUnavailable, UnspokenError

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
    face(Client(url, token)).run("stdio")


def face(client: Client) -> MCPServer:
    """Return an MCP server whose tools use a client.

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

    server = MCPServer("unspoken", instructions=INSTRUCTIONS)

    def done(call: Any, *args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        except UnspokenError as error:
            raise ToolError(str(error)) from error

    @server.tool()
    def hand_over(text: str, to: list[str] | None = None) -> dict[str, Any]:
        """Let the model read a text once and keep its cache. Returns a handle that `recall` takes, for a while.

        Args:
            text: What was understood or found out.
            to: Names of other agents that may recall it; by default only you.
        """
        made = done(client.complete, text, keep="content", to=to or [], max_tokens=1)
        return {"handle": made.kept.handle, "columns": made.kept.columns, "expires_at": made.kept.expires_at}

    @server.tool()
    def recall(question: str, handles: list[str], max_tokens: int = 256) -> dict[str, Any]:
        """Answer a question from caches that were handed over; their texts are not read again.

        Args:
            question: What is asked.
            handles: From `hand_over`, of yours or another agent's, in the order in which they shall be known.
            max_tokens: Most tokens of the answer.
        """
        made = done(client.complete, question, handles=handles, max_tokens=max_tokens)
        return {"answer": made.text, "tokens_skipped": made.skipped_tokens}

    @server.tool()
    def verify(handle: str) -> dict[str, Any]:
        """Tell whether a cache is whole, fits the served model, and who vouches for it."""
        found: dict[str, Any] = done(client.verify, handle)
        return found

    @server.tool()
    def forget(handle: str) -> str:
        """Remove a cache of yours."""
        done(client.delete, handle)
        return "forgotten"

    return server
