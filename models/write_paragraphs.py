"""Let SmolLM2 write the paragraphs that fusers are trained on, so that training needs no data set.

Encyclopaedic prose with names, dates and numbers, drawn from the model with a seed. What it states is often wrong,
which is welcome: no model can know it. The file is in the repository (`data/paragraphs.jsonl`); this is how it was
made. Another machine or version rounds otherwise and writes other paragraphs.

    python models/write_paragraphs.py
"""

from __future__ import annotations

import json
import random
import re
from itertools import product
from pathlib import Path

from unspoken import load_model
from unspoken.engines.protocol import Limits, Piece, Prompt, Turn

TARGET = Path(__file__).parent.parent / "data" / "paragraphs.jsonl"
ASKED = "Write one paragraph of an encyclopedia about {topic}, {angle}. Give names, dates and numbers."
ANGLES = (
    "how it began", "the people behind it", "its best known example", "a dispute about it", "how it is measured",
    "where it is found", "what it cost", "its decline", "an unexpected discovery", "how it is made or done",
)  # fmt: skip
TOPICS = (
    "a medieval siege", "a river delta", "a football championship", "a chemical element", "a railway line", "a volcano",
    "a university", "a painter's workshop", "a treaty between two kingdoms", "a vaccine", "a bridge", "a desert people",
    "a symphony", "a parliament", "a whale species", "a programming language", "a cathedral", "a famine", "a comet",
    "a newspaper", "a shipwreck", "a tax reform", "a coral reef", "a steam engine", "a chess tournament", "a prison",
    "a dance", "a telescope", "a spice trade route", "a border war", "a dam", "a saint", "a film studio", "a plague",
    "an orchard fruit", "a stock exchange", "a polar expedition", "a mathematical theorem", "a street market",
    "a trade union", "a clock tower", "a migrating bird", "an island republic", "a car factory", "a library fire",
    "a mountain pass", "a constitution", "a radio station", "a bakery guild", "a space probe", "a lake monster legend",
    "a school of philosophy", "a coin", "a canal", "a cheese", "a rebellion", "an earthquake", "a botanical garden",
    "a novelist", "a court case", "a bicycle race", "a glacier", "a textile mill", "an alphabet", "a nuclear plant",
    "a horse breed", "a merchant fleet", "a hospital", "an opera singer", "a census", "a forest reserve", "a patent",
    "a city wall", "an election", "a museum robbery", "a rice terrace", "a satellite", "a monastery", "a bank failure",
    "an ancient observatory", "a swimming record", "a mine", "a comic book", "a dialect", "a lighthouse keeper",
)  # fmt: skip
SEED, PARAGRAPHS, TOKENS, BATCH, LEAST_LETTERS = 20261128, 240, 130, 24, 240
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"])")


def trimmed(text: str) -> str:
    """Return a text without a last sentence that was cut off, in one line."""
    sentences = SENTENCE_END.split(" ".join(text.split()))
    return " ".join(sentences if sentences[-1].endswith((".", "!", "?")) else sentences[:-1])


def main() -> None:
    """Write what is missing of the file, a batch at a time."""
    engine = load_model("smollm2-135m")
    frame = engine.frame("You write for a large encyclopedia.")
    prefix = engine.prefill(frame.before)
    asked = [ASKED.format(topic=topic, angle=angle) for topic, angle in product(TOPICS, ANGLES)]
    random.Random(SEED).shuffle(asked)  # noqa: S311 - reproducible, not secret
    done = sum(1 for _ in TARGET.open()) if TARGET.is_file() else 0
    for at in range(done // BATCH * BATCH, PARAGRAPHS, BATCH):
        turns = [
            Turn(Prompt((Piece("content", engine.encode(words)),)) + frame.after, prefix)
            for words in asked[at : at + BATCH]
        ]
        made = engine.generate(turns, Limits(TOKENS, temperature=0.9, top_p=0.95, seed=SEED + at))
        with TARGET.open("a", encoding="utf-8") as file:
            for each in made:
                text = trimmed(each.text)
                file.write(json.dumps({"text": text if len(text) >= LEAST_LETTERS else ""}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
