"""lm-evaluation-harness on a pair: requests become questions, and scores are the lab's."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")

from lm_eval.api.instance import Instance

from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Limits
from unspoken.errors import UsageError
from unspoken.harness import lm_eval as ours
from unspoken.harness.lm_eval_model import PairLM, _limits
from unspoken.harness.pair import Cut, Pair

if TYPE_CHECKING:
    from unspoken.engines.protocol import Engine
    from unspoken.lab.record import Sample

MILL = "The old mill is run by Anna. It is red.\nQuestion: Who runs the old mill?\nAnswer: The old mill is run by"
TASK = """
task: facts
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}\\nQuestion: {{question}}\\nAnswer: {{stem}}"
doc_to_choice: options
doc_to_target: label
metric_list: [{metric: acc}]
metadata: {version: 1}
"""


def _requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, at) for at, each in enumerate(arguments)]


def _fake(arm: str = "kv") -> PairLM:
    return PairLM(pair=Pair(FakeEngine(), arm))


def test_options_of_a_context_are_scored_in_one_reading_and_greedy_is_what_would_be_said() -> None:
    found = _fake().loglikelihood(_requests("loglikelihood", (MILL, "Anna"), (MILL, "Ann"), (MILL, "Boris")), True)
    (anna, said), (ann, begun), (boris, other) = found
    assert (said, begun, other) == (True, True, False)  # Letters are the fake engine's tokens.
    assert anna > ann == boris


def test_scores_and_greediness_are_those_of_the_models_own_logits(tiny_engine: Callable[..., Any]) -> None:
    engine = tiny_engine()
    pair = Pair(engine, "kv")
    (greedy,) = pair.replies([Cut()(MILL)], Limits(3))
    options = [greedy.generation.text, " Anna"]
    scores = PairLM(pair=pair).loglikelihood(_requests("loglikelihood", *[(MILL, each) for each in options]), True)
    delivery, ask = greedy.delivery, Cut()(MILL)
    head = delivery.prompt + pair._receiver.asked(ask.question, ask.stem)
    for (score, is_greedy), option in zip(scores, options, strict=True):
        tokens = engine.encode(option)
        extended = type(head)((*head.pieces, type(head.pieces[0])("template", tokens)))
        logits = engine.logits(extended, delivery.past)[-len(tokens) - 1 : -1].log_softmax(-1)
        assert score == pytest.approx(
            float(sum(row[token] for row, token in zip(logits, tokens, strict=True))), abs=1e-3
        )
        assert is_greedy == (logits.argmax(-1).tolist() == list(tokens))


def test_space_at_a_contexts_end_belongs_to_the_continuation() -> None:
    heard: list[Any] = []

    class Listening(Pair):
        def replies(self, asks: Any, *rest: Any) -> Any:
            heard.extend(asks)
            return super().replies(asks, *rest)

    lm = PairLM(pair=Listening(FakeEngine(), "kv"))
    lm.loglikelihood(_requests("loglikelihood", (MILL + " ", "Anna"), (MILL, " Anna"), (MILL, " Boris")), True)
    assert [ask.options for ask in heard] == [(" Anna", " Boris")]


def test_generation_ends_where_the_task_says() -> None:
    context = MILL.removesuffix(" The old mill is run by")
    said = _fake().generate_until(
        _requests("generate_until", (context, {"until": ["na"]}), (context, {"max_gen_toks": 2}), (context, {})), True
    )
    assert said == ["An", "An", "Anna"]


@pytest.mark.parametrize(
    ("wanted", "limits"),
    [
        ({}, Limits(256)),
        ({"until": "\n", "max_new_tokens": 7, "do_sample": False}, Limits(7, ("\n",))),
        ({"until": ["", "x"], "do_sample": False, "temperature": 0.7, "num_beams": 1}, Limits(256, ("x",))),
        ({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "seed": 3}, Limits(256, (), 0.5, 0.9, 3)),
        ({"temperature": 0.5}, Limits(256, (), 0.5)),
    ],
)
def test_what_a_task_says_of_sampling_is_done(wanted: dict[str, Any], limits: Limits) -> None:
    assert _limits(wanted) == limits


@pytest.mark.parametrize("wanted", [{"top_k": 5}, {"num_beams": 4}, {"repetition_penalty": 1.2}])
def test_sampling_that_is_not_there_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"generation_kwargs have '{next(iter(wanted))}'"):
        _fake().generate_until(_requests("generate_until", (MILL, wanted)), True)


def test_repeats_are_drawn_anew(tiny_engine: Callable[..., Any]) -> None:
    wanted = {"do_sample": True, "temperature": 5.0, "max_gen_toks": 6}
    lm = PairLM(pair=Pair(tiny_engine(), "kv"))
    first, second = lm.generate_until(_requests("generate_until", (MILL, wanted), (MILL, wanted)), True)
    assert first != second
    assert lm.generate_until(_requests("generate_until", (MILL, wanted)), True) == [first]


def test_what_has_no_question_is_refused() -> None:
    with pytest.raises(UsageError, match="loglikelihood_rolling"):
        _fake().loglikelihood_rolling([])
    with pytest.raises(UsageError, match="chat templates are in place"):
        _fake().apply_chat_template([])
    with pytest.raises(UsageError, match="A continuation is blank"):
        _fake().loglikelihood(_requests("loglikelihood", (MILL, " ")), True)


def test_results_say_how_the_pair_was_set_and_what_moved() -> None:
    lm = _fake()
    lm.loglikelihood(_requests("loglikelihood", (MILL, " Anna")), True)
    told = lm.get_model_info()["unspoken"]
    assert (told["channel"], told["need_free"]) == ("kv", False)
    assert told["bytes_moved"] > 0
    assert PairLM(pair=Pair(FakeEngine()), split="none").get_model_info()["unspoken"]["need_free"] is True


def test_the_command_line_runs_a_task_on_the_fake_engine(
    tmp_path: Path,
    facts: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import datasets
    import lm_eval.tasks

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # Reading thousands of descriptions of other tasks takes longer than all the rest.
    own = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own)
    _written(tmp_path, facts)
    command = ["lm_eval", "--tasks", "facts", "--include_path", str(tmp_path), "--model", "unspoken", "--model_args"]
    monkeypatch.setattr(sys, "argv", [*command, "pretrained=any,engine=fake,channel=kv"])
    ours.main()
    assert "|facts|" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "pretrained=any,engine=fake,channel=telepathy"])
    with pytest.raises(SystemExit) as ended:
        ours.main()
    assert ended.value.code == 2
    assert "Error: There is no channel named 'telepathy'." in capsys.readouterr().err


@pytest.mark.model
def test_scores_on_the_real_model_are_the_labs_and_wrong_columns_are_worse(
    tmp_path: Path,
    facts: list[dict[str, Any]],
    smollm: Engine,
    in_the_lab: Callable[[Engine, str], dict[str, Sample]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    _written(tmp_path, facts)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    scores = {}
    for arm in ("kv", "none", "kv-deranged"):
        lm = PairLM(pair=Pair(smollm, arm))
        made = simple_evaluate(lm, tasks=["facts"], task_manager=manager, bootstrap_iters=0, log_samples=True)
        scores[arm] = made["results"]["facts"]["acc,none"]
        if arm == "kv-deranged":  # Which of two sources of one length comes first is another matter here.
            continue
        theirs = in_the_lab(smollm, arm)
        assert scores[arm] == sum(each.correct for each in theirs.values()) / len(theirs)
        for sample in made["samples"]["facts"]:
            gold = sample["resps"][sample["doc"]["label"]][0][0]
            assert float(gold) == pytest.approx(theirs[sample["doc"]["id"]].gold_logprob, abs=1e-3)
    assert scores["kv"] > 0.6
    assert max(scores["none"], scores["kv-deranged"]) < scores["kv"] - 0.2


def _written(folder: Path, facts: list[dict[str, Any]]) -> None:
    lines = folder / "facts.jsonl"
    lines.write_text("".join(f"{json.dumps(row)}\n" for row in facts), encoding="utf-8")
    (folder / "facts.yaml").write_text(TASK.replace("FILE", str(lines)), encoding="utf-8")


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    with pytest.raises(UsageError, match="cannot be used") as refused:
        ours.register()
    assert 'pip install "unspoken[lm-eval]"' in refused.value.hint
