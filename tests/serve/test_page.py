"""The page in a real browser: a whole session, wide and narrow, without a complaint and without another host."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Running

TOLD, ASKED = "The old mill is run by Anna.", "Who runs the old mill?"


def until(driver: Any, script: str) -> Any:
    """Wait until a script in the page returns something."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 30).until(lambda page: page.execute_script(f"return {script}"))


def say(driver: Any, to: str, words: str) -> None:
    """Say something as a user does, and wait for the answer."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element(By.ID, "to")).select_by_visible_text(to)
    field = driver.find_element(By.ID, "words")
    field.send_keys(words)
    field.submit()
    until(driver, "!document.querySelector('#say button').disabled && document.querySelector('#words').value === ''")


def test_a_whole_session_on_the_page(
    serve: Running, browser: tuple[str, Any], quiet: Callable[[Any, str], None]
) -> None:
    from selenium.webdriver.common.by import By

    _, driver = browser
    server = serve(recognise=lambda columns: "lyra" if columns.columns else None)
    driver.get(server.url)
    driver.find_element(By.CSS_SELECTOR, "#begin button").click()
    until(driver, "document.querySelectorAll('#minds li').length === 3")
    say(driver, "lyra", TOLD)
    say(driver, "cc", ASKED)
    replies = "[...document.querySelectorAll('#{} li.replied')].map((each) => each.textContent)"
    until(driver, "document.querySelectorAll('#totals tbody tr').length === 2")
    for side in ("main", "beside-side"):
        assert driver.execute_script(f"return {replies.format(side)}") == ["lyra: unknown", "cc: Anna"]
    moved = driver.find_element(By.CSS_SELECTOR, "#main li.moved").text
    assert moved.startswith("lyra to cc by kv: 2 passages, 35 columns, 4.6 kB, 27 tokens read")
    assert moved.endswith("recognised as lyra")
    # Seen as it happened: a parcel was on its way.
    assert driver.execute_script("return document.querySelectorAll('#graph line').length") == 3
    driver.find_elements(By.CSS_SELECTOR, "#minds button")[2].click()
    until(driver, "!document.querySelector('#heat').hidden")
    assert "cc: size of the values of" in driver.find_element(By.ID, "inspect-told").text
    assert [each.text for each in driver.find_elements(By.CSS_SELECTOR, "#spans span")] == [
        "the user's words", "lyra's words", "cc's words",
    ]  # fmt: skip
    # Nothing is wider than the window.
    assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    say(driver, "cc", "x")
    assert driver.execute_script(f"return {replies.format('main')}.length") == 3
    quiet(driver, server.url)


@pytest.mark.model
def test_a_session_of_the_real_model_on_the_page(
    serve: Running, browser: tuple[str, Any], quiet: Callable[[Any, str], None], tmp_path: Path
) -> None:
    """With UNSPOKEN_SCREENSHOTS set to a folder, its pictures are left there: those in the documentation."""
    from selenium.webdriver.common.by import By

    from unspoken import load_model

    size, driver = browser
    server = serve(load_model("smollm2-135m"))
    driver.get(server.url)
    driver.find_element(By.CSS_SELECTOR, "#begin button").click()
    until(driver, "document.querySelectorAll('#minds li').length === 3")
    say(driver, "lyra", "The code of the vault is 4471.")
    say(driver, "cc", "What is the code of the vault?")
    until(driver, "document.querySelectorAll('#totals tbody tr').length === 2")
    driver.find_elements(By.CSS_SELECTOR, "#minds button")[2].click()
    until(driver, "!document.querySelector('#heat').hidden")
    assert "in 30 layers" in driver.find_element(By.ID, "inspect-told").text
    replied = driver.find_elements(By.CSS_SELECTOR, "#main li.replied")[-1].text
    assert replied.startswith("cc: ")
    assert "4471" in replied
    folder = Path(os.environ.get("UNSPOKEN_SCREENSHOTS", tmp_path))
    whole = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]
    (folder / f"page-{size}.png").write_bytes(base64.b64decode(whole))
    assert (folder / f"page-{size}.png").stat().st_size > 10_000
    quiet(driver, server.url)


def test_what_is_refused_is_told_on_the_page(serve: Running, browser: tuple[str, Any]) -> None:
    from selenium.webdriver.common.by import By

    _, driver = browser
    driver.get(serve().url)
    field = driver.find_element(By.ID, "channel")
    field.clear()
    field.send_keys("telepathy")
    field.submit()
    until(driver, "document.querySelector('#status.bad')")
    assert "no channel named 'telepathy'" in driver.find_element(By.ID, "status").text
