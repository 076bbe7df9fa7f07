"""What agents of a study read, and what is kept of it: against prefills by hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from unspoken.engines.protocol import Piece, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.identity.cohort import read_tokens
from unspoken.identity.features import pooled
from unspoken.identity.projection import deviation
from unspoken.lab.recognition.collect import FEATURES, WINDOW, Collector, check
from unspoken.lab.recognition.people import WAYS, People, Texts, cut, told
from unspoken.lab.recognition.plan import RecognitionPlan, load_recognition
from unspoken.transforms.rope import RemoveRope


def by_hand(engine: TransformersEngine, system: str, ids: tuple[int, ...]) -> torch.Tensor:
    """Return the averages of a text's columns behind a system prompt, without anything of the package's identity."""
    before = engine.frame(system).before
    ahead = sum(len(piece.token_ids) for piece in before.pieces)
    whole = RemoveRope()(engine.prefill(before + Prompt((Piece("content", ids),))))
    return torch.stack(
        [torch.stack([side[:, ahead:].mean(dim=1) for side in (layer.keys, layer.values)]) for layer in whole.layers]
    )


class TestPeople:
    def test_nobody_is_in_two_groups(self, plan: RecognitionPlan) -> None:
        people = People.of(plan)
        groups = [people.cohort, people.development, people.test]
        assert [len(each) for each in groups] == [2, 6, 5]
        assert len({persona.name for each in groups for persona in each}) == 13

    def test_no_text_is_read_twice(self, collected: Collector) -> None:
        found = collected.texts
        every = [*found.development, *found.enrolment, *found.test]
        assert [len(found.development), len(found.enrolment), len(found.test)] == [6, 2, 3]
        assert len(set(every)) == 11

    def test_texts_end_with_a_sentence(self, collected: Collector, plan: RecognitionPlan) -> None:
        for ids in collected.texts.test:
            text = collected.engine.decode(ids)
            assert len(ids) <= plan.text_tokens
            assert text.endswith(".")

    def test_too_few_texts_are_refused(self, plan: RecognitionPlan, reader: TransformersEngine) -> None:
        asked = msgspec.structs.replace(plan, development_texts=500)
        with pytest.raises(UsageError, match=r"There are \d+ texts of 40 tokens and more, and 505 are asked for"):
            Texts.of(asked, reader)

    @pytest.mark.parametrize(
        ("tokens", "kept"),
        [(5, ""), (6, "One a."), (12, "One a."), (13, "One a. Two b."), (99, "One a. Two b. No end")],
    )
    def test_cut_keeps_whole_sentences(self, reader: TransformersEngine, tokens: int, kept: str) -> None:
        assert reader.decode(cut(reader, "One a. Two b. No end", tokens)) == kept

    @pytest.mark.parametrize("way", WAYS)
    def test_each_way_tells_the_agent_in_its_own_words(
        self, plan: RecognitionPlan, reader: TransformersEngine, way: str
    ) -> None:
        persona = People.of(plan).test[0]
        mind = told(persona, way, reader)
        seen = reader.decode([token for piece in mind.frame.before.pieces for token in piece.token_ids]) + mind.lead
        others = {each: told(persona, each, reader) for each in WAYS if each != way}
        assert all((mind.system, mind.lead) != (each.system, each.lead) for each in others.values())
        expected = persona.dialogue[0].words if way == "dialogue" else getattr(persona, way)
        assert expected in seen

    def test_an_unknown_way_is_refused(self, plan: RecognitionPlan, reader: TransformersEngine) -> None:
        with pytest.raises(UsageError, match="cannot be told by 'rumour'"):
            told(People.of(plan).test[0], "rumour", reader)


class TestCollector:
    def test_deviations_are_those_of_prefills_by_hand(self, collected: Collector) -> None:
        persona, ids = collected.people.test[1], collected.texts.test[2]
        cohort = torch.stack([by_hand(collected.engine, each.card, ids) for each in collected.people.cohort])
        mine = by_hand(collected.engine, persona.reworded, ids)
        found = collected.load("reworded", persona.name)
        torch.testing.assert_close(found["raw"][2], mine, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["deviation"][2], deviation(mine, cohort.mean(dim=0)), rtol=1e-3, atol=1e-5)

    def test_layer_zero_knows_no_agent(self, collected: Collector) -> None:
        found = torch.stack([collected.load("card", each.name)["deviation"] for each in collected.people.test])
        assert not found[:, :, 0].any()
        assert found[:, :, 1:].any()

    def test_moved_and_twice_handed_over_says_the_same(self, collected: Collector) -> None:
        name = collected.people.test[0].name
        card = collected.load("card", name)["deviation"]
        moved = collected.load("kv+float32", name)["deviation"]
        torch.testing.assert_close(moved[:, :, 1], card[:, :, 1], rtol=1e-3, atol=1e-5)  # Values are not turned.
        torch.testing.assert_close(moved, card, rtol=1e-2, atol=3e-3)
        # Two hops are made in bfloat16.
        torch.testing.assert_close(collected.load("two-hops", name)["deviation"], card, rtol=2e-2, atol=1e-2)

    def test_a_selection_is_compared_with_the_same_columns_of_the_cohort(self, collected: Collector) -> None:
        """Were others' whole texts taken away, what was selected would stand out everywhere, at layer 0 too."""
        name = collected.people.test[0].name
        found = collected.load("need@0.3", name)["deviation"]
        size = collected.load("card", name)["raw"].norm(dim=(-2, -1))
        apart = found.norm(dim=(-2, -1)) / size
        assert float(apart[:, 0].max()) < 4e-3  # It travels in bfloat16.
        assert float(apart[:, 1:].min()) > 1e-2

    def test_windows_together_are_the_whole(self, collected: Collector) -> None:
        found, ids = collected.load("card", collected.people.test[0].name), collected.texts.test[0]
        windows = found["windows.0"].float()
        counts = torch.full((len(windows),), float(WINDOW))
        counts[-1] = len(ids) - WINDOW * (len(windows) - 1)
        whole = (windows * counts[:, None, None, None, None]).sum(dim=0) / len(ids)
        torch.testing.assert_close(whole[1:], found["deviation"][0, 1:], rtol=1e-2, atol=2e-3)

    def test_agents_write_texts_of_their_own(self, collected: Collector) -> None:
        first, second = (collected.load("self-written", each.name) for each in collected.people.test[:2])
        assert first["tokens"].shape[0] == first["deviation"].shape[0] == 2 + 6
        assert not torch.equal(first["tokens"], second["tokens"])

    def test_twins_differ_by_their_draws_alone(self, collected: Collector) -> None:
        name = collected.people.test[0].name
        one, other = (collected.load("twins", f"{name}.{at}") for at in (0, 1))
        assert one["tokens"].shape == other["tokens"].shape
        assert not torch.equal(one["tokens"], other["tokens"])

    def test_a_run_goes_on_where_it_was_stopped(self, collected: Collector, tmp_path: Path) -> None:
        shutil.copytree(collected.folder / FEATURES, tmp_path / FEATURES)
        again, name = replace(collected, folder=tmp_path), collected.people.test[3].name
        again.path("card", name).unlink()
        told: list[tuple[int, int, str]] = []
        again.run(again.jobs(), lambda *each: told.append(each))
        assert [what for _, _, what in told] == [f"card {name}", "all read"]
        for part, tensor in collected.load("card", name).items():
            assert torch.equal(tensor, again.load("card", name)[part])

    def test_the_code_that_made_features_is_on_record(self, collected: Collector) -> None:
        (found,) = collected.revisions()
        assert set(found) == {"commit", "dirty_diff"}

    def test_raw_features_are_averages(self, collected: Collector) -> None:
        persona, ids = collected.people.test[0], collected.texts.enrolment[0]
        mind = told(persona, "card", collected.engine)
        columns = read_tokens(collected.engine, mind.prefix, ids)
        torch.testing.assert_close(collected.load("enrolment", persona.name)["raw"][0], pooled(columns))


class TestPlan:
    def test_the_committed_study_is_the_default_with_texts(self) -> None:
        found = load_recognition(Path("experiments/identity.yaml"))
        assert found == RecognitionPlan(data="data/local/xquad-en-dev.jsonl")
        assert not found.pilot

    def test_what_cannot_be_run_to_its_end_is_refused_before_it_begins(self, plan: RecognitionPlan) -> None:
        check(RecognitionPlan())
        with pytest.raises(UsageError, match="int9"):
            check(msgspec.structs.replace(plan, conditions=("card", "kv+int9")))
        with pytest.raises(UsageError, match="topics for 10 of enrolment, the study asks for 11"):
            check(msgspec.structs.replace(plan, conditions=("card", "self-written"), enrolment_texts=11))
        check(msgspec.structs.replace(plan, conditions=("card",), enrolment_texts=11))

    def test_a_small_study_is_a_pilot(self, plan: RecognitionPlan) -> None:
        assert plan.pilot

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("agents: 2", "agents is 2, expected 5 or more"),
            ("name: ../x", "cannot be a folder's"),
            ("conditions: [reworded]", "and `card` among them"),
            ("conditions: [card, card]", "Name each once"),
            ("colour: red", "is not valid"),
            ("agents: many", "is not valid"),
            ("[", "is not valid"),
        ],
    )
    def test_unsound_studies_are_refused(self, tmp_path: Path, text: str, match: str) -> None:
        path = tmp_path / "study.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError) as caught:
            load_recognition(path)
        assert match in str(caught.value)
