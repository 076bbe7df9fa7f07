"""Tasks: where sources, questions and right answers come from.

A task is named as channels are, with its options: `split-evidence@4`. One that asks from a file on this machine is
built with the file's path.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from unspoken.errors import UsageError
from unspoken.registry import Registry

if TYPE_CHECKING:
    from unspoken.lab.tasks.protocol import Task

TASKS = Registry(
    "task",
    "unspoken.tasks",
    {
        "private-facts": "unspoken.lab.tasks.private_facts:PrivateFacts",
        "split-evidence": "unspoken.lab.tasks.split_evidence:SplitEvidence",
        "reading": "unspoken.lab.tasks.reading:ReadingComprehension",
        "countries": "unspoken.lab.tasks.countries:Countries",
        "character": "unspoken.lab.tasks.character:CharacterTask",
        "conflict": "unspoken.lab.tasks.conflict:Conflict",
        "unsaid": "unspoken.lab.tasks.unsaid:Unsaid",
        "tipsheets": "unspoken.lab.tasks.tipsheets:TipSheets",
        "described": "unspoken.lab.tasks.described:DescribedTask",
    },
)
FILE = "data"
# What a task is, rather than how it is set.
FIXED = {"name", "version", "measure", FILE}


def about(text: str) -> str:
    """Return what the questions of a task are about: "text", or "receiver", whom they ask about itself.

    A task says so by its class attribute `about`; those that have none ask about the text.
    """
    name = text.partition(":")[0].partition("@")[0]
    return str(getattr(TASKS.load(name), "about", "text")) if name in TASKS.names() else "text"


def build_task(text: str, data: str | None = None) -> Task:
    """Return the task of a name with options.

    Args:
        text: Registered name, with options as channels have them: `name:key=value@amount`.
        data: The file a task asks from, for those that do.

    Raises:
        UsageError: If the name is unknown, does not take the options, or a file is missing or not wanted.
    """
    from unspoken.channels.names import parse_channel

    try:
        name, options = parse_channel(text)
    except UsageError as error:
        raise UsageError(
            f"The task '{text}' has an option that is empty or given twice.", "Write name, name@2 or name:key=value."
        ) from error
    kind = TASKS.load(name)
    known = set(signature(kind).parameters)
    strange = [option for option in options if option not in known - FIXED]
    if strange:
        taken = ", ".join(sorted(known - FIXED)) or "none"
        raise UsageError(f"The task '{name}' has no option '{strange[0]}', found in '{text}'.", f"It takes {taken}.")
    task: Task = kind(**options, **_file(name, kind, FILE in known, data))
    return task


def _file(name: str, kind: Any, wanted: bool, data: str | None) -> dict[str, str]:
    if wanted and data is None:
        raise UsageError(
            f"The task '{name}' asks from a file, and the experiment names none.",
            f"Set `data` to a file with {kind.FORMAT}; see data/README.md.",
        )
    if data is not None and not wanted:
        raise UsageError(
            f"The task '{name}' reads no file, and the experiment names {data}.",
            "Leave `data` out, or name the task; studies of recognition are for `unspoken identity evaluate`.",
        )
    return {} if data is None else {FILE: data}
