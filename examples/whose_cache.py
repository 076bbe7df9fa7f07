"""Three agents are enrolled from their cards; a cache comes without a name, and says itself whose it is.

    python examples/whose_cache.py

All three read the same text, so its words cannot tell them apart. The system prompt does not travel either: only the
columns of the text do.
"""

from __future__ import annotations

import time

from unspoken import Agent, load_model
from unspoken.channels.kv import content_columns
from unspoken.identity.backgrounds import background_for
from unspoken.identity.recognition import Recogniser
from unspoken.modelstore import home

CARDS = {
    "lyra": "You are Lyra, a field researcher. You read slowly and keep to what is written, and you name every place.",
    "vera": "You are Vera, an analyst. You answer exactly what is asked, in one short sentence, the figure first.",
    "cc": "You are CC, an engineer. You want to know what works, what is broken and what has to be done next.",
    "a stranger": "You are Ivo, a beekeeper who sings to his hives and distrusts everything that has a motor.",
}
TEXT = (
    "The committee met on Tuesday to discuss the new bridge over the river. The old one has been closed since the "
    "flood of last spring, and traders on both banks complain about the long way round by the ferry."
)


def main() -> None:
    """Enrol three agents, and ask of four caches whose they are."""
    model = load_model("smollm2-135m")
    recogniser = Recogniser(model, background_for(home() / "identity", model.spec))
    began = time.perf_counter()
    profiles = [recogniser.enrol_card(name, card, readings=4) for name, card in list(CARDS.items())[:3]]
    for name, card in CARDS.items():
        cache = content_columns(Agent(name, model, card).read(TEXT).cache)
        found = recogniser.identify(cache, profiles)
        best = found.matches[0]
        print(f"read by {name:<10} -> {found.name or 'unknown':<8} ({best.name}: {best.llr:+.1f})")
    print(f"{time.perf_counter() - began:.0f} s; {found.threshold:+.1f} is needed to be somebody")


if __name__ == "__main__":
    main()
