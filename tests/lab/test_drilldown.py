"""Every question of a run: packed without loss, and in a real browser found, opened and read."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from unspoken.lab.drilldown import packed
from unspoken.lab.record import Sample, open_finished
from unspoken.lab.report import render
from unspoken.lab.tables import ordered

ROOT = Path(__file__).resolve().parents[2]
EVIL = "</script><script>document.title = 'taken'</script>"


def messages(text: str) -> list[str | None]:
    """Read the messages of the only item of a packed run."""
    found = json.loads(text)
    (item,) = found["items"]
    return [None if each is None else found["texts"][each[0]][: each[1]] for each in item["messages"]]


@given(st.lists(st.text(alphabet="ab<\U0001f600", max_size=6), min_size=1, max_size=8))
def test_messages_come_back_whatever_begins_like_whatever(texts: list[str]) -> None:
    arms = [f"text@{at + 1}" for at in range(len(texts))]
    samples = [Sample("1", "s", arm, False, "Q", "G", message=text) for arm, text in zip(arms, texts, strict=True)]
    assert messages(packed(samples, arms)) == [text or None for text in texts]


def test_a_message_that_begins_another_is_kept_once() -> None:
    arms = ("text@1", "text@2", "text")
    samples = [
        Sample("1", "s", arm, False, "Q", "G", message=text)
        for arm, text in zip(arms, ("Bob", "Bob runs", "Bob runs it."), strict=True)
    ]
    assert json.loads(packed(samples, arms))["texts"] == ["Bob runs it."]


def test_marks_answers_and_scores_are_the_samples_own(build: Callable[..., Any]) -> None:
    run = build({"none": "01", "kv": "11"}, timed=1, failed={"kv": 1})
    found = json.loads(packed(run.samples, ("kv", "none")))
    assert [item["marks"] for item in found["items"]] == ["10", "x1"]
    assert found["items"][1]["answers"][0] == "Too long."
    half = [msgspec.structs.replace(sample, score=0.256) for sample in run.samples if sample.arm == "none"]
    assert [item["scores"] for item in json.loads(packed(half, ("kv", "none")))["items"]] == [[None, 0.26]] * 2


def test_every_question_can_be_found_and_opened(
    build: Callable[..., Any], browser: tuple[str, Any], quiet: Callable[[Any, str], None], tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    _, driver = browser
    run = build({"none": "0" * 60, "text@32": "01" * 30, "kv": "1" * 60}, answer=EVIL, message=f"Bob {EVIL}")
    (tmp_path / "report.html").write_text(render(run.experiment, run.samples, run.metrics, run.env), encoding="utf-8")
    driver.get(f"file://{tmp_path}/report.html")
    shown = "document.querySelectorAll('#every details').length"
    told = driver.find_element(By.CSS_SELECTOR, "#ask output")
    assert (driver.execute_script(f"return {shown}"), told.text) == (25, "60 of 60 questions")
    for _ in range(2):
        driver.execute_script("document.getElementById('more').click()")
    assert driver.execute_script(f"return {shown}") == 60
    assert not driver.find_element(By.ID, "more").is_displayed()
    Select(driver.find_element(By.NAME, "right")).select_by_visible_text("kv")
    Select(driver.find_element(By.NAME, "wrong")).select_by_visible_text("text@32")
    assert told.text == "30 of 60 questions"
    driver.find_element(By.CSS_SELECTOR, "#every summary").click()
    lines = [each.text for each in driver.find_elements(By.CSS_SELECTOR, "#every details[open] li")]
    assert [line.split()[0] for line in lines] == list(ordered(run.experiment.arms))
    assert f"message: Bob {EVIL}" in lines[1]
    driver.find_element(By.NAME, "words").send_keys("no such words")
    assert told.text == "0 of 60 questions"
    # What a model wrote stays words, and nothing is wider than the window.
    assert driver.title != "taken"
    assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    quiet(driver, "file:")


def test_a_committed_run_opens_without_a_complaint_and_prints(
    browser: tuple[str, Any], quiet: Callable[[Any, str], None], tmp_path: Path
) -> None:
    """With UNSPOKEN_SCREENSHOTS set to a folder, its picture is left there: that in the documentation."""
    from selenium.webdriver.common.by import By

    size, driver = browser
    run = ROOT / "results" / "prove" / "20261123T184546Z-10585ff1"
    held = open_finished(run).contents()
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    (tmp_path / "report.html").write_text(render(held.experiment, held.samples, metrics, held.env), encoding="utf-8")
    driver.get(f"file://{tmp_path}/report.html")
    driver.find_element(By.CSS_SELECTOR, "#every summary").click()
    assert len(driver.find_elements(By.CSS_SELECTOR, "#every details[open] li")) == len(held.experiment.arms)
    assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    heads = driver.find_elements(By.CSS_SELECTOR, "table.results th button")
    driver.execute_script("arguments[0].click()", next(each for each in heads if each.text.startswith("right")))
    first = driver.find_element(By.CSS_SELECTOR, "table.results tbody tr").text
    assert first.split()[0] in held.experiment.arms
    paper = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert paper.startswith(b"%PDF")
    driver.execute_script("document.querySelector('#ask').scrollIntoView(); scrollBy(0, -90)")
    shot = Path(os.environ.get("UNSPOKEN_SCREENSHOTS", tmp_path)) / f"report-{size}.png"
    assert driver.save_screenshot(str(shot))
    quiet(driver, "file:")
