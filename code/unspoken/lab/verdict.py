"""From figures to words: what a run has shown, what it has not, and what it cannot show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from unspoken.lab.experiment import POWERED_ITEMS
from unspoken.lab.metrics import CLAIMED_GAIN, CLAIMED_SPEED, EQUAL_MARGIN
from unspoken.lab.tables import SIGNIFICANT, Number, bracket, percent, points, probability, rate, whole_percent

Answer = Literal["yes", "no", "not shown", "not asked"]
Standing = Literal["holds", "not shown", "does not hold", "not measured"]
# A bootstrap over fewer clusters than about this gives intervals that are too narrow.
ENOUGH_SOURCES = 30
# One ratio has no spread: its interval would be a point.
LEAST_TIMED = 2


class Verdict(msgspec.Struct, frozen=True):
    """What a run says.

    Attributes:
        answer: Whether understanding moved through the cache.
        sentences: Three to six, for readers who know no statistics.
        warnings: Whatever casts doubt on the run itself.
    """

    answer: Answer
    sentences: tuple[str, ...]
    warnings: tuple[str, ...] = ()


class Claim(msgspec.Struct, frozen=True):
    """The founding claim against one text arm: 8 to 10 points more accuracy, twice the speed.

    Attributes:
        arm: The text arm.
        accuracy: Whether the gain in accuracy holds.
        accuracy_text: The gain with its interval.
        accuracy_mean: The gain alone, 0 to 1.
        speed: Whether the gain in speed holds.
        speed_text: How many times as long text takes, with its interval.
        speed_mean: The ratio alone; None if nothing was timed.
        timed_items: Items the speed was measured on.
    """

    arm: str
    accuracy: Standing
    accuracy_text: str
    accuracy_mean: float
    speed: Standing
    speed_text: str
    speed_mean: float | None
    timed_items: int


def judge(metrics: Mapping[str, Any]) -> Verdict:
    """Return the verdict on a run.

    `yes` needs a content gain whose interval lies above 0 and whose p-value is below 0.05. `no` needs an interval that
    lies below 0, or one that leaves no room for a gain of 5 points, in a run large enough and a task on which reading
    the text is shown to help; twins are told apart by a state, which reading the same words cannot show. A run whose
    questions are about the receiver itself does not ask: `not asked`. Everything else is `not shown`.
    """
    if metrics.get("about", "text") != "text":
        told = (_unasked(metrics), _pilot(metrics))
        return Verdict("not asked", tuple(each for each in told if each), _warnings(metrics))
    answer = _answer(metrics)
    found = claims(metrics)
    sentences = (_content(answer, metrics), _presence(metrics), _closeness(metrics), *_claimed(found), _pilot(metrics))
    return Verdict(answer, tuple(each for each in sentences if each), _warnings(metrics))


def _unasked(metrics: Mapping[str, Any]) -> str:
    ways = {
        "none": "with nothing",
        "full-text": "reading the text",
        "kv": "with the sender's columns of it",
        "kv-continue": "going on from the sender's whole cache",
    }
    arms = metrics["arms"]
    rates = ", ".join(f"{percent(_reached(arms[arm]))} % {way}" for arm, way in ways.items() if arm in arms)
    return (
        "Whether understanding moved was not asked: the questions are about the receiver, not about the text. It gave "
        f"the answer that counts here in {rates}."
    )


def claims(metrics: Mapping[str, Any]) -> tuple[Claim, ...]:
    """Return how the founding claim fares against each text arm.

    More accuracy without a content gain supports nothing: it would be there with another text's cache, too.
    """
    found = (_claim(arm, of) for arm, of in metrics.get("claims", {}).items())
    if _answer(metrics) == "yes":
        return tuple(found)
    return tuple(
        msgspec.structs.replace(each, accuracy="not shown") if each.accuracy == "holds" else each for each in found
    )


def _answer(metrics: Mapping[str, Any]) -> Answer:
    gain = metrics.get("content_gain", {})
    low, high, p = gain.get("low"), gain.get("high"), gain.get("p")
    if low is None or high is None:
        return "not shown"
    if low > 0 and p is not None and p < SIGNIFICANT:
        return "yes"
    able = not metrics.get("pilot") and (_text_helps(metrics) or "twins" in metrics)
    return "no" if high < 0 or (high < EQUAL_MARGIN and able) else "not shown"


def _text_helps(metrics: Mapping[str, Any]) -> bool | None:
    """Whether reading the whole text is shown to raise the score; None if that was not measured."""
    gain = metrics.get("reading_gain", {})
    return None if gain.get("low") is None else bool(gain["low"] > 0)


def _content(answer: Answer, metrics: Mapping[str, Any]) -> str:
    gain = metrics.get("content_gain", {})
    if gain.get("low") is None:
        return (
            "It is not shown that understanding moved: that takes the arms kv and kv-deranged, "
            "the right cache and that of another text, in one run."
        )
    arms = metrics["arms"]
    opening = {
        "yes": "Yes, understanding moved",
        "no": "No, understanding did not move",
        "not shown": "It is not shown that understanding moved",
    }[answer]
    right, wrong = percent(_reached(arms[_subject(metrics)])), percent(_reached(arms[_control(metrics)]))
    rates = f"with the right cache the receiver {_got(metrics, f'{right} %')}, with the cache of another text {wrong} %"
    worth = f"the content is worth {percent(gain['mean'])} points ({_range(gain)}, {_p(gain.get('p'))})"
    unable = answer == "not shown" and _text_helps(metrics) is False and "twins" not in metrics
    told = "; reading the text itself is not shown to help either, so this run cannot tell" if unable else ""
    return f"{opening}: {rates}; {worth}{told}."


def _presence(metrics: Mapping[str, Any]) -> str:
    effect = metrics.get("presence_effect", {})
    if effect.get("low") is None:
        return "What the mere presence of a cache does was not measured; that takes the arms none and kv-deranged."
    numbers = f"{points(effect['mean'])} points against none at all ({_range(effect)})"
    if effect["low"] > 0:
        return f"The mere presence of a cache helps, even a wrong one: {numbers}."
    if effect["high"] < 0:
        return f"The mere presence of a wrong cache does harm: {numbers}."
    return f"The mere presence of a cache is not shown to matter: a wrong one changes {_what(metrics)} by {numbers}."


def _closeness(metrics: Mapping[str, Any]) -> str:
    gap = metrics.get("pgr", {}).get(_subject(metrics))
    if gap is None:
        return "How close the cache comes to reading the text was not measured; that takes none, full-text and kv."
    arms = metrics["arms"]
    if gap.get("mean") is None:
        read, unread = percent(_reached(arms["full-text"])), percent(_reached(arms["none"]))
        rates = f"{read} % {'F1' if _by_words(metrics) else 'right'} with it, {unread} % without"
        return (
            "The words alone do not tell, as it has to be: reading the text helps nobody."
            if metrics.get("twins")
            else f"How close the cache comes to reading cannot be told: reading is not shown to help ({rates})."
        )
    kept = f"Of what reading the text itself adds, the cache gives {whole_percent(gap['mean'])} %"
    return f"{kept}{_share_range(gap)}{_equality(metrics.get(f'{_short(metrics)}_equals_full_text', {}))}."


def _equality(equal: Mapping[str, Any]) -> str:
    if equal.get("low") is None:
        return ""
    margin = f"{100 * equal['margin']:.0f} points"
    if equal["equal"]:
        return f"; the two are equal to within {margin}"
    if equal["high"] <= -equal["margin"]:
        return f"; the cache falls short of the text by {margin} or more"
    if equal["low"] >= equal["margin"]:
        return f"; the cache exceeds the text by {margin} or more"
    return f"; that the two are equal to within {margin} is not shown"


def _claimed(found: Sequence[Claim]) -> tuple[str, ...]:
    if not found:
        claim = "8 to 10 points more accuracy and twice the speed of text"
        return (f"The founding claim ({claim}) was not tested; that takes kv and a text arm.",)
    accuracy = _grouped([(each.accuracy, f"{each.arm} ({each.accuracy_text})") for each in found])
    timed = [each for each in found if each.speed != "not measured"]
    first = f"The founding claim of 8 to 10 points more accuracy than a written message {accuracy}."
    if not timed:
        return first, "The claim of twice the speed was not measured: no items were timed."
    speed = _grouped([(each.speed, f"{each.arm} ({each.speed_text})") for each in timed])
    count = min(each.timed_items for each in timed)
    return first, f"The claim of twice the speed {speed}, measured on {count} item{'s' if count != 1 else ''}."


def _grouped(standings: Sequence[tuple[Standing, str]]) -> str:
    """Say 'holds against a and b, is not shown against c'."""
    words: dict[Standing, str] = {
        "holds": "holds",
        "not shown": "is not shown",
        "does not hold": "does not hold",
        "not measured": "was not measured",
    }
    parts = []
    for standing, verb in words.items():
        against = [text for each, text in standings if each == standing]
        if against:
            parts.append(f"{verb} against {listed(against)}")
    return "; it ".join(parts)


def listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: 'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _claim(arm: str, of: Mapping[str, Any]) -> Claim:
    gain, ratio, timed = of["accuracy_difference"], of["time_ratio"], of["timed_items"]
    return Claim(
        arm,
        _standing(gain, CLAIMED_GAIN),
        f"{points(gain.get('mean'))} points{bracket(gain, _percent_beside_claim)}",
        gain["mean"],
        _standing(ratio, CLAIMED_SPEED) if timed >= LEAST_TIMED or not timed else "not shown",
        f"{_times(ratio.get('mean'))} times{bracket(ratio, _times_beside_claim)}" if timed else "not timed",
        ratio.get("mean"),
        timed,
    )


def _standing(interval: Mapping[str, Any], claimed: Number) -> Standing:
    low, high = interval.get("low"), interval.get("high")
    if low is None or high is None:
        return "not measured"
    return "holds" if low >= claimed else "does not hold" if high < claimed else "not shown"


def _pilot(metrics: Mapping[str, Any]) -> str:
    if not metrics.get("pilot"):
        return ""
    about = f" about {metrics['sources']} texts" if "sources" in metrics else ""
    return (
        f"This is a pilot: it asked {metrics.get('items', 'few')} {_counted(metrics)}{about}, and telling a difference "
        f"of 5 points takes about {POWERED_ITEMS}."
    )


def _warnings(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    arms, found = metrics.get("arms", {}), []
    gate, agrees, sources = metrics.get("gate"), metrics.get("alone_agrees"), metrics.get("sources")
    if isinstance(gate, Mapping) and gate.get("passed") is False:
        found.append(
            "The gate was not passed: this engine does not move this model's caches exactly; no figure counts."
        )
    if {"kv", "kv-shifted"} <= set(arms) and _reached(arms["kv-shifted"]) >= _reached(arms["kv"]):
        rates = f"{percent(_reached(arms['kv-shifted']))} % against {percent(_reached(arms['kv']))} %"
        found.append(f"The right cache at wrong positions (kv-shifted) should do worse than kv and does not: {rates}.")
    failed = [f"{arm}: {of['failures']} of {of['n']}" for arm, of in arms.items() if of.get("failures")]
    if failed:
        found.append(f"Some questions got no answer and count as wrong ({'; '.join(failed)}).")
    if agrees is not None and agrees < 1:
        # What llama.cpp does is measured in docs/log.md.
        found.append(
            f"Of the answers given alone, {percent(agrees)} % are the same as in the batch. All should be, but in "
            "llama.cpp, which computes a batch in another order and rounds."
        )
    if sources is not None and sources < ENOUGH_SOURCES:
        found.append(f"With questions about only {sources} texts, the intervals are likely too narrow.")
    return tuple(found)


def _subject(metrics: Mapping[str, Any]) -> str:
    return str(metrics.get("subject", "kv"))


def _control(metrics: Mapping[str, Any]) -> str:
    return str(metrics.get("control", "kv-deranged"))


def _short(metrics: Mapping[str, Any]) -> str:
    return "subject" if "subject" in metrics else "kv"


def _reached(of: Mapping[str, Any]) -> Number:
    return rate(of)["mean"] or 0.0


def _by_words(metrics: Mapping[str, Any]) -> bool:
    return bool(metrics.get("measure") == "f1")


def _got(metrics: Mapping[str, Any], share: str) -> str:
    if metrics.get("twins"):
        return f"told {share} of the pairs of states of mind apart"
    return f"reached an F1 of {share}" if _by_words(metrics) else f"got {share} of the questions right"


def _counted(metrics: Mapping[str, Any]) -> str:
    return "questions, each in two states of mind," if metrics.get("twins") else "questions"


def _what(metrics: Mapping[str, Any]) -> str:
    return "F1" if _by_words(metrics) else "accuracy"


def _range(interval: Mapping[str, Any]) -> str:
    return f"95 % interval {percent(interval['low'])} to {percent(interval['high'])}"


def _share_range(interval: Mapping[str, Any]) -> str:
    low, high = interval.get("low"), interval.get("high")
    return "" if low is None or high is None else f" (95 % interval {whole_percent(low)} to {whole_percent(high)})"


def _times(value: Number | None) -> str:
    return "?" if value is None else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _times_beside_claim(value: Number | None) -> str:
    return _beside(value, CLAIMED_SPEED) if value is not None and value < 99.95 else _times(value)


def _percent_beside_claim(value: Number | None) -> str:
    return percent(value) if value is None else _beside(100 * value, 100 * CLAIMED_GAIN)


def _beside(value: Number, claimed: Number) -> str:
    """Return a number to a tenth, or as finely as it takes to tell it from the claim."""
    shown = [f"{value:.{digits}f}" for digits in (1, 2, 3)]
    return next((each for each in shown if float(each) != claimed), shown[0]).replace("-0.0", "0.0")


def _p(value: Number | None) -> str:
    if value is None:
        return "no p-value"
    shown = probability(value)
    return f"p {shown[0]} {shown[1:]}" if shown[0] == "<" else f"p = {shown}"
