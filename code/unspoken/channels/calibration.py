"""Texts and questions for channels that have to be set up once for a model: never those of an experiment.

They were written for this purpose and no task draws from them, so that nothing is tuned on what it is judged by.
"""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """A text and a question about it."""

    text: str
    question: str


EXAMPLES = (
    Example(
        "The ferry to the outer islands leaves at six in the morning and carries forty passengers. Its captain, Mrs "
        "Okafor, has sailed the route for eleven years. In winter the crossing takes twice as long.",
        "Who is the captain of the ferry?",
    ),
    Example(
        "Copper was found under the ridge in 1871. The first shaft reached ninety metres, and the ore was carried to "
        "the coast by mules until the railway came. The mine closed when the price fell.",
        "How deep was the first shaft?",
    ),
    Example(
        "The choir rehearses on Mondays in the old gymnasium. This spring it sings three pieces by a composer from "
        "Lima, and the concert will be recorded for the radio. Tickets are sold at the bakery.",
        "Where can tickets be bought?",
    ),
    Example(
        "Two sensors in the greenhouse measure humidity. The one near the door fails when it is colder than four "
        "degrees, so the gardeners trust the one above the orchids. A pump starts when the air is too dry.",
        "Which sensor do the gardeners trust?",
    ),
    Example(
        "The second edition of the atlas has ninety maps, twelve more than the first. Its paper comes from Finland. "
        "Schools may order it at half the price until the end of May.",
        "How many maps does the second edition have?",
    ),
    Example(
        "Bees visit the blue flowers before noon and the yellow ones after it. A student counted four hundred visits "
        "in one week. She thinks that the shade of the tower is the reason.",
        "What does the student think is the reason?",
    ),
)
