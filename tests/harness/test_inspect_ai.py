"""Inspect on a pair: messages become a source and a question, and answers are the lab's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("inspect_ai", reason="Inspect is not installed")

import anyio
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample as Asked
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import includes
from inspect_ai.tool import ToolInfo

from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.errors import StorageError, UsageError
from unspoken.harness import inspect_ai as ours
from unspoken.harness.inspect_model import PairAPI, _limits, asked
from unspoken.harness.pair import Ask, Cut, Pair

if TYPE_CHECKING:
    from unspoken.engines.protocol import Engine
    from unspoken.lab.record import Sample

MILL = "The old mill is run by Anna. It is red."
WHO = "Who runs the old mill?"


def _generated(api: PairAPI, messages: list[Any], tools: list[ToolInfo] | None = None, **config: Any) -> Any:
    return anyio.run(api.generate, messages, tools or [], "auto", GenerateConfig(**config))


def _fake(**how: Any) -> PairAPI:
    return PairAPI("any", pair=Pair(FakeEngine(), "kv"), **how)


def test_what_stands_before_the_last_message_is_read_and_that_is_asked() -> None:
    user, system = ChatMessageUser(content=WHO), ChatMessageSystem(content=MILL)
    assert asked([system, user], Cut()) == Ask(MILL, WHO)
    said = ChatMessageAssistant(content="I see.")
    assert asked([system, ChatMessageUser(content="Read."), said, user], Cut()) == Ask(
        f"System: {MILL}\n\nUser: Read.\n\nAssistant: I see.", WHO
    )
    alone = ChatMessageUser(content=f"{MILL}\nQuestion: {WHO}\nAnswer: The mill")
    assert asked([alone], Cut()) == Ask(MILL, WHO, "The mill")


def test_messages_that_cannot_be_asked_are_refused() -> None:
    picture = ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])
    for messages, problem in (
        ([], "The last message is from 'nobody'"),
        ([ChatMessageUser(content=WHO), ChatMessageAssistant(content="Hm")], "The last message is from 'assistant'"),
        ([picture], "something else than text"),
        ([ChatMessageUser(content=WHO)], "The mark"),
    ):
        with pytest.raises(UsageError, match=problem):
            asked(messages, Cut())


def test_an_answer_comes_with_what_it_cost() -> None:
    output = _generated(_fake(), [ChatMessageUser(content=MILL), ChatMessageUser(content=WHO)])
    assert (output.completion, output.stop_reason) == ("Anna", "stop")
    assert output.usage.output_tokens == len("Anna")
    assert output.usage.input_tokens == output.usage.total_tokens - len("Anna") > len(WHO)
    told = output.metadata
    assert (told["channel"], told["need_free"], told["tokens_skipped"]) == ("kv", False, len(MILL))
    assert told["bytes_moved"] > 0
    assert set(told["seconds"]) == {"capture", "transform", "move", "inject", "first_token", "answer"}


def test_an_answer_cut_short_says_so() -> None:
    messages = [ChatMessageUser(content=MILL), ChatMessageUser(content=WHO)]
    output = _generated(_fake(), messages, max_tokens=2)
    assert (output.completion, output.stop_reason) == ("An", "max_tokens")


def test_tools_and_settings_that_are_not_there_are_refused() -> None:
    tool = ToolInfo(name="search", description="Search.")
    with pytest.raises(UsageError, match=r"gives tools \(search\)"):
        _generated(_fake(), [ChatMessageUser(content=WHO)], [tool])
    for config in ({"top_k": 3}, {"num_choices": 2}, {"logprobs": True}, {"frequency_penalty": 0.5}):
        with pytest.raises(UsageError, match=f"The task sets '{next(iter(config))}'"):
            _limits(GenerateConfig(**config))
    for config in ({"top_k": 1}, {"frequency_penalty": 1.0}, {"presence_penalty": 1.0}, {"num_choices": True}):
        with pytest.raises(UsageError, match=f"The task sets '{next(iter(config))}'"):
            _limits(GenerateConfig.model_construct(**config))
    assert _limits(GenerateConfig(num_choices=1, best_of=1, frequency_penalty=0.0)) == Limits(64)
    told = GenerateConfig(max_tokens=5, stop_seqs=["x", ""], temperature=0.5, top_p=0.9, seed=2)
    assert _limits(told) == Limits(5, ("x",), 0.5, 0.9, 2)
    assert _limits(GenerateConfig()) == Limits(64)


def test_every_epoch_is_drawn_anew_and_the_same_again_in_another_run() -> None:
    seeds: list[tuple[str, int]] = []

    class Watched(Pair):
        def replies(self, asks: Any, limits: Limits) -> Any:
            seeds.append((asks[0].question, limits.seed))
            return super().replies(asks, limits)

    def run() -> None:
        api = PairAPI("any", pair=Watched(FakeEngine(), "kv"))
        for question in (WHO, WHO, "What colour is it?", WHO):
            _generated(api, [ChatMessageUser(content=MILL), ChatMessageUser(content=question)], temperature=0.9, seed=5)
        _generated(api, [ChatMessageUser(content=MILL), ChatMessageUser(content=WHO)], seed=5)

    run()
    # Without temperature there is nothing to draw.
    assert [seed for _, seed in seeds] == [5, 6, 5, 7, 5]
    run()
    assert seeds[:5] == seeds[5:]


def test_the_wrong_columns_need_a_text_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs another text's columns"):
        PairAPI("any", engine="fake", channel="kv-deranged")
    with pytest.raises(UsageError, match=r"'deranged:need@0\.3' needs another text's columns"):
        PairAPI("any", engine="fake", channel="deranged:need@0.3")
    with pytest.raises(StorageError, match="cannot be read"):
        PairAPI("any", engine="fake", channel="kv-deranged", stand_in=str(tmp_path / "none.txt"))


def test_one_question_is_answered_at_a_time() -> None:
    assert _fake().max_connections() == 1
    running, most = 0, 0

    class Watched(Pair):
        def replies(self, *arguments: Any) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                return super().replies(*arguments)
            finally:
                running -= 1

    api = PairAPI("any", pair=Watched(FakeEngine(), "kv"))

    async def several() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                messages = [ChatMessageUser(content=MILL), ChatMessageUser(content=WHO)]
                group.start_soon(api.generate, messages, [], "auto", GenerateConfig())

    anyio.run(several)
    assert most == 1


def test_inspect_finds_the_provider_by_its_name_and_runs_a_task_on_it(tmp_path: Path) -> None:
    assert ours.unspoken is not None
    task = Task(dataset=[Asked(input=f"{MILL}\nQuestion: {WHO}", target="Anna")], scorer=includes())
    model = get_model("unspoken/any", engine="fake", channel="kv", memoize=False)
    (log,) = eval(task, model=model, log_dir=str(tmp_path), display="none")
    assert log.status == "success"
    assert log.results.scores[0].metrics["accuracy"].value == 1.0


@pytest.mark.model
def test_answers_of_the_real_model_are_the_labs_and_wrong_columns_are_worse(
    tmp_path: Path,
    facts: list[dict[str, Any]],
    smollm: Engine,
    in_the_lab: Callable[[Engine, str], dict[str, Sample]],
) -> None:
    samples = [
        Asked(
            input=f"{row['text']}\nQuestion: {row['question']}\nAnswer: {row['stem']}", target=row["gold"], id=row["id"]
        )
        for row in facts
    ]
    scores = {}
    for arm in ("kv", "none", "kv-deranged"):
        texts = [row["text"] for row in facts]
        pair = Pair(smollm, arm, stand_in=texts[0] if arm == "kv-deranged" else None)
        kept = [each for each in samples if arm != "kv-deranged" or not str(each.input).startswith(texts[0])]
        config = GenerateConfig(max_tokens=6, stop_seqs=[".", "\n"])
        model = get_model("unspoken/smollm2-135m", config=config, pair=pair, memoize=False)
        (log,) = eval(Task(dataset=kept, scorer=includes()), model=model, log_dir=str(tmp_path), display="none")
        assert log.status == "success"
        scores[arm] = log.results.scores[0].metrics["accuracy"].value
        if arm != "kv-deranged":
            theirs = in_the_lab(smollm, arm)
            assert {each.id: each.output.completion for each in log.samples} == {
                item: sample.answer for item, sample in theirs.items()
            }
    assert scores["kv"] > 0.6
    assert max(scores["none"], scores["kv-deranged"]) < scores["kv"] - 0.2
