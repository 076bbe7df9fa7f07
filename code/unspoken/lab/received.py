"""What the receiver gets in each arm, in plain words, for tables and reports."""

from __future__ import annotations

from unspoken.channels.names import parse_channel
from unspoken.channels.text import UNCAPPED_TOKENS
from unspoken.errors import UsageError
from unspoken.lab.arms import DERANGED
from unspoken.lab.parts import is_parts, parted
from unspoken.lab.relay import hops_of, is_relay

RECEIVED = {
    "none": "only the question",
    "full-text": "the whole text, which it reads itself",
    "text": "a message of at most {amount} tokens, written by the sender not knowing the question",
    "text-asked": "a message of at most {amount} tokens, written by the sender knowing the question",
    "kv": "the sender's cache of the text",
    "kv-continue": "the sender's whole cache, instructions and all",
    "kv-deranged": "the cache of another text",
    "kv-zero": "as large a cache, all zeros",
    "kv-random": "as large a cache of noise with the right mean and spread",
    "kv-self": "its own cache of an equally long text that says nothing",
    "kv-shifted": "the right cache, its keys turned to wrong positions",
    "need": "{share} of the sender's cache of the text: what the sender looks at for the question",
    "need:attention": "{share} of the sender's cache of the text: what the sender looks at for the question",
    "need:value-norm": "{share} of the sender's cache of the text: the columns with the largest values",
    "need:random": "{share} of the sender's cache of the text: columns drawn at random",
    "need:recency": "{share} of the sender's cache of the text: the last columns",
    "layers": "the sender's cache in {share} of the layers",
    "layers:causal": "the sender's cache in {share} of the layers",
    "layers:published": "the sender's cache in {share} of the layers; in the others the question can see ahead",
    "compose": "the senders' caches of their texts, one behind the other",
    "compose:align": "the senders' caches of their texts, one behind the other",
    "compose:published": "the senders' whole caches with prompts and all, at the positions they were made at",
    "compose:concat": "the senders' caches of their texts, all at the positions they were made at",
    "compose:legolink": "the senders' caches of their texts, the first {amount} tokens of each later one read again",
    "compose:cacheblend": "the senders' caches of their texts, {share} of the tokens read again",
    "compose:blend": "the senders' caches of their texts, {share} of the tokens read again, neighbours together",
    "latent": "the sender's whole cache and {amount} steps of thought without words",
    "latent:realign": "the sender's whole cache and {amount} steps of thought without words, mapped back to inputs",
    "embedding": "a message of at most {amount} mixtures of words, written by the sender not knowing the question",
    "activation": "one vector of the sender's in place of its own",
    "activation:replace": "one vector of the sender's in place of its own",
    "activation:sum": "one vector of the sender's, added to its own",
    "activation:mean": "one vector of the sender's, averaged with its own",
    "fused": "columns that a fuser made of the sender's cache of the text",
    "fused-deranged": "columns that the fuser made of the cache of another text",
    "fused-zero": "as many columns that the fuser made of zeros",
    "fused-self": "columns that a fuser made of the receiver's own model's cache of the text",
    "finetune": "the cache of a sender with other weights",
}
"""By an arm's name with its variant; `{amount}` and `{share}` are filled in."""
AMOUNTS = {
    "text": UNCAPPED_TOKENS, "text-asked": UNCAPPED_TOKENS, "need": 0.3, "layers": 0.7, "compose:legolink": 16,
    "compose:cacheblend": 0.15, "compose:blend": 0.15, "latent": 0, "embedding": 32,
}  # fmt: skip
"""What is meant where a name has no amount, by the channel or its variant."""
FURTHER = {
    "backfill": "{value} directions of the rest added to the values",
    "alpha": "attention counting for {value} in the choice",
    "temperature": "at a temperature of {value}",
}


def received(arm: str) -> str:
    """Say in plain words what the receiver gets in an arm, besides the question."""
    if arm.startswith(DERANGED):
        return f"of another text: {received(arm.removeprefix(DERANGED))}"
    if is_relay(arm):
        hops, channel = hops_of(arm)
        return f"{received(channel)}, handed on from agent to agent {hops} times"
    if is_parts(arm):
        return "; ".join(f"part {at}: {received(each)}" for at, each in enumerate(parted(arm), start=1))
    unknown = f"what the channel '{arm.partition('+')[0]}' hands over"
    try:
        name, options = parse_channel(arm)
    except UsageError:
        return unknown
    variant, codec = options.pop("variant", None), options.pop("codec", None)
    if name.startswith("fused"):
        return _fused(name, options)
    whole = f"{name}:{variant}" if variant else name
    amount = options.pop("amount", AMOUNTS.get(whole, AMOUNTS.get(name)))
    words = [RECEIVED[whole].format(amount=amount, share=_percent(amount))] if whole in RECEIVED else []
    if name == "finetune" and variant:
        words = [f"{RECEIVED[name]}, its layers {variant} computed anew"]
    if not words or not options.keys() <= FURTHER.keys():
        words, options = [unknown], {}
    words += [FURTHER[key].format(value=value) for key, value in options.items()]
    return ", ".join([*words, *([f"sent as {codec}"] if codec else [])])


def _fused(name: str, options: dict[str, str]) -> str:
    read = f", and reads the text itself for its first {options['own']} layers" if "own" in options else ""
    return RECEIVED[name] + read if name in RECEIVED else f"what the channel '{name}' hands over"


def _percent(amount: object) -> str:
    try:
        return f"{100 * float(str(amount)):g} %"
    except ValueError:
        return str(amount)
