"""The Python of every document runs: its blocks one after the other, in one namespace and an empty folder.

What a block takes for granted (a file, a name, another model) is made here, before it; what it only defines is used
here, behind it. Models are loaded once, and those that are not here are stood in for by small ones.
"""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from .blocks import ROOT, Block, blocks

NOT_RUN = {
    ("docs/fusers.md", "lyra = Agent"): "needs the second model, half a gigabyte; examples/two_families.py is run",
    ("docs/llamacpp.md", "park_model"): "needs two large GGUF files; tests/engines run parked engines",
    ("docs/server.md", "OpenAI("): "needs a server; tests/serve and an example that is run have the same calls",
    ("docs/server.md", 'handle = made.model_extra["kv_transfer_params"]["handle"]\n'): "goes on with that",
    ("docs/server.md", "Client(token="): "needs a server with tokens; tests/serve has the same calls",
}
"""Blocks that are compiled, and of which only the imports are run: by what stands in them, and why."""

OFFLINE = {"docs/channels.md", "docs/format.md", "docs/scale.md", "docs/trust.md"}
"""Documents whose Python needs no model."""

REPORT = """Inspection of the district, second week of May. It was a calm week and most visitors came on foot.
The northern station is run by Anna, who has kept it since the storm. The old mill is closed on Monday.
The stone bridge is painted blue."""

BEFORE = {
    ("docs/quickstart.md", 'open("report.txt")'): "open('report.txt', 'w').write(REPORT)",
    ("docs/quickstart.md", 'folder = "path/to/model"'): "keep_tiny_model('path/to/model')",
    ("docs/how-to.md", "lyra.read(open("): "open('report.txt', 'w').write(REPORT)",
    ("docs/how-to.md", "digest == expected"): "expected = manifest.digest",
    ("docs/how-to.md", "in (vera, cc)"): "cc, text = Agent('cc', vera.engine), REPORT",
    ("docs/how-to.md", "codec.pack(cache)"): "cache = reading.cache",
    ("docs/how-to.md", 'channel="need@0.3"'): "from unspoken import Session; report = REPORT",
    ("docs/how-to.md", "first_page"): "first_page, second_page = REPORT.split('The old')",
    ("docs/how-to.md", "cache.without_tokens()"): "path = 'bare.kv.safetensors'",
    ("docs/how-to.md", 'glob("*/metrics.json")'): "link_results()",
    ("docs/identity.md", "Recogniser("): "keep_report(load_model('smollm2-135m')); read_fewer_passages()",
    ("docs/trust.md", "seal_file("): "from unspoken import FakeEngine; keep_report(FakeEngine())",
}
"""What is done before the block of a document in which some words stand."""

READING = (
    "from unspoken import Agent, FakeEngine; lyra, vera = Agent('lyra', FakeEngine()), Agent('vera', FakeEngine())"
)
AFTER = {
    ("docs/channels.md", "class Opening:"): f"""{READING}
scores = Opening().scores([(lyra.read("The mill is old."), "What is old?")])[0]
assert scores.shape[1] == scores[0].numel() and bool((scores.diff(dim=1) < 0).all())""",
    ("docs/channels.md", "class Coarse:"): f"""{READING}
from unspoken.transforms.rope import RemoveRope
cache = RemoveRope()(lyra.read("The mill is run by Anna.").cache)
again = Coarse("coarse").unpack(Coarse("coarse").pack(cache))
for before, after in zip(cache.layers, again.layers, strict=True):
    assert torch.allclose(before.keys.float(), after.keys.float(), atol=float(before.keys.abs().max()) / 100)""",
    ("docs/channels.md", "def send(self"): f"""{READING}
from unspoken.channels.protocol import Request
reading = lyra.read("The old mill is run by Anna. The bridge is blue.")
(made,) = FirstHalf().send([Request((reading,), "Who runs the old mill?")], vera)
assert 0 < made.tokens_skipped <= reading.cache.span("content").columns // 2 + 1""",
    ("docs/format.md", "def read(path)"): "kept, _ = read('toy.kv.safetensors'); assert kept == shown",
    ("docs/how-to.md", "def deliver(self"): """from unspoken import FakeEngine
fakes = [Agent(name, FakeEngine()) for name in ("lyra", "vera")]
fact = fakes[0].read("The old mill is run by Anna. The bridge is blue.")
assert FirstHalf().deliver([Request((fact,), "Who runs the old mill?")], fakes[1], None)""",
    ("docs/how-to.md", "def test_vera_learns"): "test_vera_learns_what_lyra_read()",
    ("docs/errors.md", "except UnspokenError"): "assert error_was_told()",
}
"""What is done behind it, in the same namespace."""

PAGES: dict[str, list[Block]] = defaultdict(list)
for each in blocks("python"):
    PAGES[each.document].append(each)


def given(table: dict[tuple[str, str], str], block: Block) -> str:
    """What a table has for a block; nothing, if it has nothing."""
    found = [text for (document, words), text in table.items() if document == block.document and words in block.text]
    return "\n".join(found)


@pytest.mark.parametrize("table", [NOT_RUN, BEFORE, AFTER], ids=["not run", "before", "after"])
def test_what_is_said_of_a_block_is_said_of_one(table: dict[tuple[str, str], str]) -> None:
    for document, words in table:
        assert len([block for block in PAGES[document] if words in block.text]) == 1, (document, words)


@pytest.fixture(scope="module")
def loaded() -> Callable[..., Any]:
    """Load the real model once, and stand in for models that nobody has."""
    from unspoken import load_model

    kept: dict[str, Any] = {}

    def load(source: str, **options: Any) -> Any:
        if source == "path/to/fine-tune":
            from unspoken.engines.tuned import low_rank_copy

            return low_rank_copy(load("smollm2-135m"), size=0.1, rank=8)
        source = "smollm2-135m" if source == "path/to/base" else source
        if source not in kept:
            kept[source] = load_model(source, **options)
        return kept[source]

    return load


def keep_report(engine: Any) -> None:
    """Write what an agent reads in the report into a file, as `unspoken capture` does."""
    from unspoken import Agent, write_cache
    from unspoken.channels.kv import content_columns

    write_cache(content_columns(Agent("lyra", engine).read(REPORT).cache), "report.kv.safetensors")


@pytest.mark.timeout(900)  # A document of recipes hands over a dozen times.
@pytest.mark.parametrize(
    "document", [pytest.param(name, marks=() if name in OFFLINE else pytest.mark.model) for name in PAGES]
)
def test_the_python_of_a_document_runs(
    document: str,
    loaded: Callable[..., Any],
    tiny_model: Callable[..., Any],
    tiny_tokenizer: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def keep_tiny_model(folder: str) -> None:
        tiny_model("llama").save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)

    def read_fewer_passages() -> None:
        from unspoken.identity.recognition import Recogniser

        monkeypatch.setattr(Recogniser, "enrol_card", partialmethod(Recogniser.enrol_card, readings=4))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.import_module("unspoken"), "load_model", loaded, raising=False)
    names: dict[str, Any] = {
        "__name__": "block",
        "REPORT": REPORT,
        "keep_report": keep_report,
        "keep_tiny_model": keep_tiny_model,
        "link_results": lambda: Path("results").symlink_to(ROOT / "results"),
        "load_model": loaded,
        "error_was_told": lambda: "smollm2" in capsys.readouterr().out,
        "read_fewer_passages": read_fewer_passages,
        "shown": shown(),
    }
    for block in PAGES[document]:
        run(block, names)


def run(block: Block, names: dict[str, Any]) -> None:
    """Run a block; of one that cannot be run, only what it imports."""
    tree = ast.parse(block.text, str(block))
    if given(NOT_RUN, block):
        tree.body = [part for part in tree.body if isinstance(part, ast.Import | ast.ImportFrom)]
    exec(given(BEFORE, block), names)  # noqa: S102 - the project's own documents
    exec(compile(tree, str(block), "exec", dont_inherit=True), names)  # noqa: S102
    exec(given(AFTER, block), names)  # noqa: S102


def shown() -> Any:
    """The manifest that the document of the format shows for its example."""
    import json

    (block,) = [each for each in blocks("json") if '"version": 2' in each.text]
    return json.loads(block.text)["cache"]
