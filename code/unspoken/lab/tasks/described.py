"""A task of one's own: a description in YAML of where rows come from, and of what is read, asked and right.

Keys are those of lm-evaluation-harness's task files where they mean the same; `doc_to_source`, what the sender reads,
is ours. No code stands in a description, and none that comes with a data set is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from unspoken.errors import UsageError
from unspoken.lab.tasks.lines import Words, drawn, grouped
from unspoken.lab.tasks.protocol import Item, Measure, Source
from unspoken.lab.tasks.rows import DataFiles, load_rows
from unspoken.lab.tasks.templates import Filled, Row
from unspoken.lab.yamlfile import read_yaml


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a description.

    Attributes:
        version: Changes whenever what is asked changes.
    """

    version: str | int | float


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task's description. Each `doc_to_` is a template, or a field's name alone.

    Attributes:
        task: Its name.
        dataset_path: A hub id, a folder, or `json`, `csv` or `parquet` for files.
        doc_to_source: What the sender reads.
        doc_to_text: What the receiver is asked.
        doc_to_target: The right answer; with choices, one of them or its number, counted from 0.
        target_is: Which of the two it is, where choices are numbers themselves and it could be either.
        metric: What an answer is judged by.
        metadata: The version.
        dataset_name: The data set's configuration.
        dataset_kwargs: Files and the like.
        test_split: Which split; may be left out if there is one only.
        doc_to_choice: All answers it could be: a list, or a template or field that gives one.
        further_targets: A template or field that gives a list of further right answers.
        stem: The words the answer begins with.
        keep: What says `True` for a row that is asked, and `False` for one that is left out; all are asked without it.
    """

    task: Words
    dataset_path: Words
    doc_to_source: Words
    doc_to_text: Words
    doc_to_target: Words
    metric: Measure
    metadata: About
    dataset_name: str | None = None
    dataset_kwargs: DataFiles = DataFiles()
    test_split: str | None = None
    doc_to_choice: str | list[str] | None = None
    further_targets: str | None = None
    stem: str | None = None
    keep: Words | None = None
    target_is: Literal["choice", "number"] | None = None

    def __post_init__(self) -> None:
        if (self.metric == "options") != (self.doc_to_choice is not None):
            raise ValueError("`metric: options` and `doc_to_choice` go together: one is there without the other")
        if self.further_targets is not None and self.doc_to_choice is not None:
            raise ValueError("`further_targets` are for open answers; with `doc_to_choice` one answer is right")


KEYS = f"Its keys are {', '.join(Description.__struct_fields__)}; see docs/how-to.md, 'A task of your own'."


@dataclass(frozen=True)
class DescribedTask:
    """Whatever a description says; rows about the same text become one source, in an order that the seed gives.

    Args:
        data: The description's file.
    """

    FORMAT: ClassVar[str] = "a task's description in YAML"

    data: str
    name: str = "described"

    @cached_property
    def description(self) -> Description:
        """What the file says.

        Raises:
            StorageError: If it cannot be read.
            UsageError: If it is no description.
        """
        return read_yaml(Path(self.data), Description, "task's description", KEYS)

    @property
    def version(self) -> str:
        """The description's task and version."""
        return f"{self.description.task}/{self.description.metadata.version}"

    @property
    def measure(self) -> Measure:
        """What an answer is judged by."""
        return self.description.metric

    def sources(self, items: int, seed: int) -> tuple[Source, ...]:
        """Return texts with at least so many questions in all.

        Raises:
            StorageError: If a file cannot be read.
            UsageError: If the data set cannot be had or does not fit the templates, or there are too few questions.
        """
        says, templates = self.description, _Templates(self.description, self.data)
        rows = load_rows(
            says.dataset_path, says.dataset_name, says.test_split, says.dataset_kwargs, Path(self.data).parent
        )
        kept = [row for row in rows if templates.keeps(row)]
        if rows and not kept:
            raise UsageError(f"`keep` of {self.data} leaves none of {len(rows)} rows.", "Give one that some rows meet.")
        sources = grouped(((templates.source.text(row), row) for row in kept), templates.item)
        return drawn(f"{self.name}/{self.version}", self.data, sources, items, seed)


class _Templates:
    """The templates of a description, read once."""

    def __init__(self, says: Description, where: str) -> None:
        def filled(key: str) -> Filled:
            return Filled(key, getattr(says, key), where)

        self._where = where
        self.source, self._question, self._target = map(filled, ("doc_to_source", "doc_to_text", "doc_to_target"))
        self._stem = filled("stem") if says.stem else None
        self._further = filled("further_targets") if says.further_targets else None
        self._keep = filled("keep") if says.keep else None
        self._target_is = says.target_is
        self._choices = filled("doc_to_choice") if isinstance(says.doc_to_choice, str) else says.doc_to_choice

    def keeps(self, row: Row) -> bool:
        """Tell whether a row is asked."""
        return self._keep is None or self._keep.holds(row)

    def item(self, name: str, row: Row) -> Item:
        """Return the question of a row."""
        options = () if self._choices is None else self._options(self._choices, row)
        target = self._target.text(row)
        further = () if self._further is None else self._further.texts(row)
        return Item(
            name,
            self._question.text(row),
            self._chosen(target, options, row) if options else target,
            options,
            "" if self._stem is None else self._stem.text(row),
            tuple(each for each in dict.fromkeys(further) if each and each != target),
        )

    def _options(self, choices: Filled | Sequence[str], row: Row) -> tuple[str, ...]:
        found = choices.texts(row) if isinstance(choices, Filled) else tuple(each.strip() for each in choices)
        if len(found) < 2 or len(set(found)) != len(found) or not all(found):
            raise UsageError(
                f"`doc_to_choice` of {self._where} gives {list(found)} for row {row.at}.",
                "Expected: two or more different texts, none of them blank.",
            )
        return found

    def _chosen(self, target: str, options: Sequence[str], row: Row) -> str:
        numbered = options[int(target)] if target.isdecimal() and int(target) < len(options) else None
        meant = {"choice": target if target in options else None, "number": numbered}
        told = [meant[self._target_is]] if self._target_is else list(meant.values())
        found = {each for each in told if each is not None}
        if len(found) == 1:
            return found.pop()
        where = f"`doc_to_target` of {self._where} gives '{target}' for row {row.at}"
        if found:
            raise UsageError(
                f"{where}, which is one of the choices {list(options)} and the number of another.",
                "Say which is meant: `target_is: choice` or `target_is: number`.",
            )
        raise UsageError(
            f"{where}, which is neither one of the choices nor the number of one: {list(options)}."
            if self._target_is is None
            else f"{where}, which is no {self._target_is} of these: {list(options)}.",
            f"Give one of them, or its number from 0 to {len(options) - 1}.",
        )
