"""What a fuser is worth beside the receiver's own reading: agreement, and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from unspoken.channels.fused import Fused
from unspoken.channels.text import content
from unspoken.engines.protocol import Engine
from unspoken.errors import StorageError, UsageError
from unspoken.fusers import found as found_fuser
from unspoken.fusers import load_fuser
from unspoken.fusers.protocol import Translator
from unspoken.lab import folders, provenance, record
from unspoken.session import Agent
from unspoken.spec import fingerprint
from unspoken.train.agreement import agreement
from unspoken.train.config import Training
from unspoken.train.store import AGENTS
from unspoken.train.study import open_pair

EXPERIMENT, RECIPE = "fuser-eval", "training.yaml"
REPEATS = 5


def evaluate(name: str, texts: Sequence[str], columns: int, results: Path) -> tuple[Path, dict[str, Any]]:
    """Measure a fuser on texts, write a run folder, and return it with the figures.

    Args:
        name: The fuser: a folder, or a name below `models/`; its `training.yaml` names the models.
        texts: Texts it was not fitted to, two or more.
        columns: Columns that are fused and read when time is taken, at most.
        results: Where run folders are.

    Raises:
        UnspokenError: If the fuser, a model or a text cannot be used, or the folder cannot be written.
    """
    training, fuser = recipe(name), load_fuser(name)
    if not isinstance(fuser, Translator):
        raise UsageError(f"The fuser '{name}' needs the receiver's own columns.", "Measure it with an experiment.")
    sender, receiver = open_pair(training)
    found = asdict(agreement(fuser, sender, receiver, texts))
    metrics = {
        "experiment": EXPERIMENT,
        "fuser": name,
        "kind": fuser.kind,
        "top1_agreement": found["top1"],
        "top1_agreement_control": found["control"],
        "top1_agreement_none": found["none"],
        "tokens": found["tokens"],
        "texts": len(texts),
        "parameters": parameters(fuser),
        **timed(name, sender, receiver, texts, columns),
    }
    env = {"machine": provenance.machine(), "packages": provenance.packages(), "revision": provenance.revision()}
    parent = results / EXPERIMENT
    with folders.writable(parent):
        parent.mkdir(parents=True, exist_ok=True)
        folder = folders.new_folder(parent, fingerprint(name)[:8])
        folders.write(folder / "config.yaml", msgspec.yaml.encode(training))
        record.write_env(folder, env)
        folders.write_json(folder / "metrics.json", metrics)
    return folder, metrics


def recipe(name: str) -> Training:
    """Return how a fuser was trained.

    Raises:
        StorageError: If its folder does not say.
        UsageError: If what it says is not valid.
    """
    path = found_fuser(name) / RECIPE
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=Training)
    except OSError as error:
        raise StorageError(
            f"How the fuser '{name}' was trained is not known: {path} cannot be read ({error.strerror}).",
            "Give a fuser made by `unspoken fuser train`.",
        ) from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is not valid: {error}.", "Give a fuser made by `unspoken fuser train`.") from error


def parameters(fuser: Any) -> int:
    """Return how many numbers a fuser keeps."""
    return sum(tensor.numel() for tensor in fuser.state_dict().values())


def timed(name: str, sender: Engine, receiver: Engine, texts: Sequence[str], columns: int) -> dict[str, Any]:
    """Return what fusing some columns takes, and what the receiver takes to read the same tokens.

    Both are medians over the same few rounds, one after the other in each, and the sender's reading counts for neither.
    """
    reader, answerer = Agent(AGENTS[0], sender), Agent(AGENTS[0], receiver)
    text = cut_to(receiver, " ".join(texts), columns)
    reading, channel, prompt = reader.read(text), Fused(name), content(answerer, text)
    fusing, reading_times = [], []
    for _ in range(REPEATS + 1):
        fusing.append(_took(lambda: channel.deliver(reading, answerer)))
        reading_times.append(_took(lambda: receiver.prefill(prompt, answerer.prefix)))
    # The first round warms up: the fuser is loaded in it.
    fuse, prefill = statistics.median(fusing[1:]), statistics.median(reading_times[1:])
    return {
        "columns": len(prompt.token_ids),
        "seconds_fuse": fuse,
        "seconds_prefill": prefill,
        "fuse_to_prefill": fuse / prefill,
        "bytes_moved": channel.deliver(reading, answerer).bytes_moved,
    }


def cut_to(engine: Engine, text: str, columns: int) -> str:
    """Return the beginning of a text in whole words, of at most so many tokens."""
    words = text.split(" ")
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(engine.encode(" ".join(words[:middle]))) <= columns else (low, middle - 1)
    return " ".join(words[:low])


def _took(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began
