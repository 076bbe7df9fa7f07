"""A task of inspect_ai on a pair of agents: one reads the first message, the other answers the last.

    python examples/from_inspect.py          # needs the extra inspect

With the package installed, `inspect eval task.py --model unspoken/smollm2-135m -M channel=kv` does the same.
"""

from __future__ import annotations

import tempfile

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, get_model
from inspect_ai.scorer import includes

from unspoken.harness import inspect_ai  # noqa: F401 - makes the provider known where the package is not installed

REPORT = "It was a calm week. The northern station is run by Anna, since the storm. It rained on Friday."
ASKED = {
    "Who runs the northern station? Answer briefly.": "Anna",
    "On which day did it rain? Answer briefly.": "Friday",
}


def main() -> None:
    """Print how many answers hold the right word, and what one of them cost."""
    samples = [
        Sample(input=[ChatMessageUser(content=REPORT), ChatMessageUser(content=question)], target=right)
        for question, right in ASKED.items()
    ]
    for channel in ("none", "kv"):
        model = get_model("unspoken/smollm2-135m", channel=channel)
        with tempfile.TemporaryDirectory() as logs:
            (log,) = eval(Task(dataset=samples, scorer=includes()), model=model, log_dir=logs, display="none")
            # Samples are read from the log when they are asked for.
            moved = log.samples[0].output.metadata["bytes_moved"]
        right = log.results.scores[0].metrics["accuracy"].value
        print(f"{channel:<6} {right:.0%} right, {moved:,} bytes moved for one answer")


if __name__ == "__main__":
    main()
