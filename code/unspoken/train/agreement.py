"""How often a receiver on mapped columns says what it would have said had it read the text itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.cache import DTYPES, KVCache
from unspoken.channels.fused import NAME, sent_rows
from unspoken.channels.kv import WIRE
from unspoken.engines.protocol import Engine, Piece, Prompt
from unspoken.errors import UsageError
from unspoken.fusers.protocol import Translator
from unspoken.fusers.rows import as_cache
from unspoken.manifest import Step
from unspoken.session import Agent
from unspoken.train.store import AGENTS
from unspoken.transforms.place import place_behind


@dataclass(frozen=True)
class Agreement:
    """Shares of tokens at which the most probable next token is the one the receiver's own columns lead to.

    Attributes:
        top1: With the columns that the fuser makes of the sender's.
        control: With those it makes of another text: what columns of any text are worth.
        none: With no columns of the text at all.
        tokens: How many tokens were compared.
    """

    top1: float
    control: float
    none: float
    tokens: int


def agreement(
    fuser: Translator, sender: Engine, receiver: Engine, texts: Sequence[str], codec: str = WIRE
) -> Agreement:
    """Compare a receiver on mapped columns with the receiver that has read the text itself.

    The sender reads the first half of each text and the fuser maps its columns, as the channel `fused` does; the
    receiver reads the second half on top of them. Both have the same system prompt, so that only the map differs.

    Args:
        fuser: What makes the receiver's columns.
        sender: The model that reads first halves.
        receiver: The model that reads second halves.
        texts: Two or more, of two words or more; none of those the fuser was fitted to.
        codec: Element type of what travels.

    Raises:
        UsageError: If there are fewer texts, one has no two words, or tokens do not align.
        IncompatibleCache: If the fuser is for other models.
    """
    if len(texts) < 2:
        raise UsageError(f"Agreement on {len(texts)} texts has no control.", "Give two texts or more.")
    fuser.pair.require(sender.spec, receiver.spec)
    reader, answerer = Agent(AGENTS[0], sender), Agent(AGENTS[0], receiver)
    cut = [halves(text) for text in texts]
    mapped = [handed(fuser, reader, answerer, first, codec) for first, _ in cut]
    agreed, tokens = torch.zeros(3, dtype=torch.int64), 0
    for at, (first, second) in enumerate(cut):
        ids = receiver.encode(second)
        pasts = (mapped[at], mapped[(at + 1) % len(texts)], answerer.prefix)
        own = said(receiver, ids, answerer.read(first).cache)
        agreed += torch.tensor([int((said(receiver, ids, past) == own).sum()) for past in pasts])
        tokens += len(ids)
    top1, control, none = (agreed / tokens).tolist()
    return Agreement(top1, control, none, tokens)


def halves(text: str) -> tuple[str, str]:
    """Return a text cut at the space nearest its middle, which the second half begins with.

    Raises:
        UsageError: If it has no two words.
    """
    text = text.strip()
    spaces = [at for at, letter in enumerate(text) if letter == " "]
    if not spaces:
        raise UsageError(f"The text '{text[:40]}' cannot be halved: it has no space.", "Give running text.")
    middle = min(spaces, key=lambda at: abs(2 * at - len(text)))
    return text[:middle], text[middle:]


@torch.inference_mode()
def handed(fuser: Translator, reader: Agent, answerer: Agent, text: str, codec: str = WIRE) -> KVCache:
    """Return the receiver's prefix and, behind it, the columns that a fuser makes of what the sender has read."""
    message = fuser.encode(sent_rows(reader.read(text), answerer.engine)).to(DTYPES[codec])
    columns = fuser.decode(message.to(torch.float32))
    steps = (Step("fuse", {"fuser": NAME, "kind": fuser.kind}),)
    return place_behind(answerer.prefix, as_cache(columns, answerer.engine.spec, steps, reader.name))


def said(engine: Engine, ids: Sequence[int], past: KVCache) -> Int[Tensor, " tokens"]:
    """Return the most probable next token at each of some tokens read on top of columns."""
    logits: Float[Tensor, "tokens vocab"] = engine.logits(Prompt((Piece("content", tuple(ids)),)), past)
    return logits.argmax(dim=-1)
