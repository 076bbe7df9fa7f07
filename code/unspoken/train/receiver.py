"""The receiver in training: it answers from columns, and says how far it is from what it should say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from unspoken.cache import KVCache
from unspoken.engines.batch import Layout, Row, lay_out
from unspoken.engines.guided import Columns, guiding
from unspoken.engines.protocol import Engine
from unspoken.fusers.pair import Side
from unspoken.fusers.rows import as_layers
from unspoken.session import Agent
from unspoken.train.lesson import Asked
from unspoken.transforms.rope import angles, rotated, rotation

END = "."
"""Follows each answer, so that the receiver learns where to end."""


@dataclass(frozen=True)
class Exam:
    """Questions with their answers, laid out to be read in one pass.

    Attributes:
        layout: What is read.
        keep: The tokens whose logits are judged.
        targets: The token that should come after each.
        first: Which of them predict the first token of an answer.
    """

    layout: Layout
    keep: Int[Tensor, " kept"]
    targets: Int[Tensor, " kept"]
    first: Int[Tensor, " questions"]


class Receiver:
    """An agent whose answers are judged.

    Args:
        name: The agent's name.
        engine: Its model, frozen.
    """

    def __init__(self, name: str, engine: Engine) -> None:
        self.agent, self._engine, self._guided = Agent(name, engine), engine, guiding(engine)
        prefix = self.agent.prefix
        # Copies: what was made without gradients cannot be part of what has them.
        self._prefix = [(layer.keys.clone(), layer.values.clone()) for layer in prefix.layers]
        self._columns = prefix.columns

    def exam(self, asked: Sequence[Asked], columns: int) -> Exam:
        """Return questions laid out behind the prefix and so many further columns."""
        past = self._columns + columns
        rows: list[Row] = []
        keep: list[int] = []
        targets: list[int] = []
        first: list[int] = []
        at = 0
        for each in asked:
            prompt = self.agent.asked(each.question, each.stem).token_ids
            answer = self._engine.encode(f" {each.answer}") + self._engine.encode(END)
            rows.append(Row(range(past), prompt + answer[:-1], (), past))
            first.append(len(keep))
            keep += range(at + len(prompt) - 1, at + len(prompt) - 1 + len(answer))
            targets += answer
            at += len(prompt) + len(answer) - 1
        return Exam(lay_out(rows, past), torch.tensor(keep), torch.tensor(targets), torch.tensor(first))

    def placed(self, rows: Float[Tensor, "columns receiver"]) -> list[Columns]:
        """Return position-free columns behind the prefix, turned to their positions; gradients pass through."""
        spec = self._engine.spec
        by = rotation(angles(torch.arange(self._columns, self._columns + len(rows)), spec.rope))
        made = as_layers(rows, Side.of(spec)).unbind(0)
        return self.behind([(rotated(keys, by, spec.rope), values) for keys, values in made])

    def behind(self, layers: Sequence[tuple[Tensor, Tensor]]) -> list[Columns]:
        """Return columns that are turned to their positions already, behind the prefix."""
        return [
            (torch.cat((keys, made[0]), dim=1), torch.cat((values, made[1]), dim=1))
            for (keys, values), made in zip(self._prefix, layers, strict=True)
        ]

    def logits(
        self, past: Sequence[Columns], exam: Exam, heard: list[Tensor] | None = None
    ) -> Float[Tensor, "kept vocab"]:
        """Return what the receiver says where it is judged."""
        return self._guided.guided(past, exam.layout, exam.keep, heard)

    def without(self, asked: Sequence[Asked]) -> Float[Tensor, "questions vocab"]:
        """Return log-probabilities of each answer's first token when nothing was handed over."""
        exam = self.exam(asked, 0)
        with torch.no_grad():
            return self.logits(self._prefix, exam)[exam.first].log_softmax(dim=-1)

    def own(self, text: str) -> KVCache:
        """Return the receiver's own columns of a text, prefix included."""
        return self.agent.read(text).cache


def answer_loss(logits: Float[Tensor, "kept vocab"], exam: Exam) -> Float[Tensor, ""]:
    """Return the cross-entropy of the answers' tokens, in nats a token; each answer counts alike, however long."""
    each = functional.cross_entropy(logits, exam.targets, reduction="none")
    lengths = torch.diff(exam.first, append=torch.tensor([len(each)]))
    return (each / lengths.repeat_interleave(lengths)).sum() / len(lengths)


def guard_loss(
    logits: Float[Tensor, "kept vocab"], exam: Exam, without: Float[Tensor, "questions vocab"]
) -> Float[Tensor, ""]:
    """Return how far another text's columns move the answers from those given with none: KL(with none || with them).

    After the mismatched-message guard of Draft-KV (arXiv 2609.34754): columns that do not hold the answer shall not
    make the receiver sure of one.
    """
    return functional.kl_div(logits[exam.first].log_softmax(dim=-1), without, log_target=True, reduction="batchmean")


def attention_loss(heard: Sequence[Tensor], own: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return the squared distance of attention outputs from those on the receiver's own columns, against their size.

    Attention outputs, and not keys and values, are what a map has to get right (arXiv 2608.03893, section on R2).
    """
    parts = [(a - b).square().sum() / b.square().sum().clamp(min=1e-6) for a, b in zip(heard, own, strict=True)]
    return torch.stack(parts).mean()
