"""Folders of two tiny models, to train a fuser between them.

Nothing of the package is imported before a fixture runs, so that `--jaxtyping-packages` can hook in first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_folders(
    tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The folder of a sender and that of a receiver, of other kinds and sizes."""
    made = tmp_path_factory.mktemp("models")
    sizes = {"max_position_embeddings": 2048}
    models = {
        "reader": tiny_model("qwen3", 3, num_hidden_layers=3, head_dim=8, **sizes),
        "answerer": tiny_model("llama", 0, **sizes),
    }
    for name, model in models.items():
        model.save_pretrained(made / name)
        tiny_tokenizer().save_pretrained(made / name)
    return made / "reader", made / "answerer"
