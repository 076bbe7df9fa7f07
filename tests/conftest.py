"""Fixtures for every test: the fake engine, and tiny random models of each supported kind, built in code.

Nothing of the package is imported before a fixture runs, so that `--jaxtyping-packages` can hook in first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn

    from unspoken.engines.fake import FakeEngine
    from unspoken.engines.protocol import Engine, Prompt
    from unspoken.engines.transformers import TransformersEngine

THETA = {"rope_theta": 10000.0}
WINDOWS = {"desktop": (1280, 900), "phone": (390, 844)}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama3": (
        "LlamaConfig",
        {
            "rope_parameters": THETA
            | {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "yarn": (
        "LlamaConfig",
        {"rope_parameters": THETA | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    ),
    "linear": ("LlamaConfig", {"rope_parameters": THETA | {"rope_type": "linear", "factor": 4.0}}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": False}),
    "qwen3": ("Qwen3Config", {}),
}
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    # Wide enough that attention is far from even: a wrong position or mask then changes every logit.
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": None,
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pytest_configure() -> None:
    """Keep to one thread, which is faster for models this small; draw the same examples in every run."""
    from hypothesis import settings

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings.register_profile("steady", deadline=None, derandomize=True, database=None)
    settings.load_profile("steady")


@pytest.fixture
def fake() -> FakeEngine:
    """A deterministic engine without weights."""
    from unspoken.engines.fake import FakeEngine

    return FakeEngine()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    """Make a tokenizer of bytes with ChatML's marks and the chat template given."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(chat_template: str | None = CHATML) -> Any:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        raw = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        raw.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>")
        tokenizer.chat_template = chat_template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., nn.Module]:
    """Make a random float32 model of a kind, the same for the same kind, seed and changes of its configuration."""
    import torch
    import transformers

    def make(kind: str = "llama", seed: int = 0, **changes: Any) -> nn.Module:
        name, fields = KINDS[kind]
        config = getattr(transformers, name)(**(SIZES | fields | changes))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def tiny_engine(
    tiny_model: Callable[..., nn.Module], tiny_tokenizer: Callable[..., Any]
) -> Callable[..., TransformersEngine]:
    """Make an engine on a tiny random model of a kind; one for each kind, seed and changes of its configuration."""
    from unspoken.engines.transformers import TransformersEngine

    @cache
    def make(kind: str = "llama", seed: int = 0, **changes: Any) -> TransformersEngine:
        return TransformersEngine(tiny_model(kind, seed, **changes), tiny_tokenizer(), f"tiny-{kind}")

    return make


@pytest.fixture(params=sorted(KINDS))
def engine(request: pytest.FixtureRequest, tiny_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """The transformers engine on a tiny model: a test that takes it runs for every supported kind."""
    return tiny_engine(request.param)


@pytest.fixture
def content() -> Callable[[Engine, str], Prompt]:
    """Make a prompt of a text's tokens, as content."""
    from unspoken.engines.protocol import Piece, Prompt

    return lambda engine, text: Prompt((Piece("content", engine.encode(text)),))


@pytest.fixture(params=WINDOWS)
def browser(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """A browser of a size that writes down what it asks for and what it complains of."""
    webdriver: Any = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program, served = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and served):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(served))
    width, height = WINDOWS[request.param]
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": request.param == "phone"},
    )
    yield request.param, driver
    driver.quit()


@pytest.fixture
def quiet() -> Callable[[Any, str], None]:
    """See that a page complained of nothing and asked nobody but the one at an address."""

    def check(driver: Any, url: str) -> None:
        assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
        asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        urls = {each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"}
        assert urls
        assert all(each.startswith((url, "data:")) for each in urls)

    return check
