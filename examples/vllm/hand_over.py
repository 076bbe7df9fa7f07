"""What llama.cpp has read, vLLM goes on from: columns handed over through an LMCache store, with a zeroed control.

    python examples/vllm/hand_over.py VLLM_PYTHON [--engine llamacpp|transformers]

VLLM_PYTHON is the interpreter of an environment with vLLM and LMCache (docs/transports.md). For each text of texts.txt
vLLM writes on three times: alone, from the columns of this process, and from the same columns set to zero. Writes
results/vllm/<time>/metrics.json and ends with 1 if anything is not as expected.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from unspoken import load_model
from unspoken.cache import KVCache
from unspoken.engines.protocol import Piece, Prompt
from unspoken.lab import record
from unspoken.modelstore import resolve
from unspoken.transports.lmcache_client import Address, Server
from unspoken.transports.lmcache_server import Limits, start, stop
from unspoken.transports.vllm_blocks import BLOCK, pack

MODEL = "smollm2-135m"
ANSWERS = ("Ida Holt", "cheese", "hotel")  # What a reader of the texts goes on with, and nobody else can know.


def main() -> int:
    """Run the four ways for each text, and keep what came of it."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("vllm_python")
    options.add_argument("--engine", default="llamacpp", choices=("llamacpp", "transformers"))
    options.add_argument("--results", default="results", type=Path)
    given = options.parse_args()
    model = load_model(MODEL, engine=given.engine)
    folder = str(resolve(MODEL).folder)
    texts = Path(__file__).with_name("texts.txt").read_text(encoding="utf-8").strip().split("\n\n")
    prompts = [model.encode(" ".join(text.split())) for text in texts]
    caches = [model.prefill(Prompt((Piece("content", tuple(ids)),))) for ids in prompts]
    with tempfile.TemporaryDirectory() as work:
        found = {"alone": _go_on(given.vllm_python, folder, prompts, 0, Path(work))}
        for arm, factor in (("handed over", 1.0), ("zeroed", 0.0)):
            found[arm] = _with_store(given.vllm_python, folder, prompts, caches, factor, Path(work))
    return _kept(found, prompts, given)


def _with_store(python: str, folder: str, prompts: Any, caches: list[KVCache], factor: float, work: Path) -> Any:
    """Return what vLLM writes, with a store of its own that has the columns, times a factor."""
    limits = Limits(Address(port=15655, http_port=18181), memory_gb=0.5, chunk=BLOCK)
    running = start("vllm", work, limits)
    try:
        server = Server(running.address)
        for ids, cache in zip(prompts, caches, strict=True):
            whole = len(ids) // BLOCK * BLOCK
            keys, values = (
                torch.stack([getattr(layer, part)[:, :whole].float() * factor for layer in cache.layers])
                for part in ("keys", "values")
            )
            server.put_blocks(folder, ids[:whole], pack(keys, values), keys.shape[1])
        return _go_on(python, folder, prompts, limits.address.port, work)
    finally:
        stop("vllm", work)


def _go_on(python: str, folder: str, prompts: Any, port: int, work: Path) -> Any:
    file = work / "prompts.json"
    file.write_text(json.dumps([list(map(int, ids)) for ids in prompts]))
    script = Path(__file__).with_name("go_on.py")
    began = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - what the user named
        [python, str(script), folder, str(file), str(port)], stdout=subprocess.PIPE, check=True
    )
    print(f"vLLM with {'a store' if port else 'nothing'}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _kept(found: dict[str, Any], prompts: Any, given: argparse.Namespace) -> int:
    alone, handed, zeroed = (found[arm] for arm in ("alone", "handed over", "zeroed"))
    rows = [
        {
            "prompt_tokens": len(ids),
            "cached": handed[at]["cached"],
            "same_as_alone": handed[at]["tokens"] == alone[at]["tokens"],
            "answered": ANSWERS[at] in handed[at]["text"],
            "zeroed_answered": ANSWERS[at] in zeroed[at]["text"],
            "zeroed_cached": zeroed[at]["cached"],
            "zeroed_same_as_alone": zeroed[at]["tokens"] == alone[at]["tokens"],
            "texts": {arm: found[arm][at]["text"] for arm in found},
        }
        for at, ids in enumerate(prompts)
    ]
    fine = all(
        row["same_as_alone"]
        and row["answered"]
        and not row["zeroed_same_as_alone"]
        and not row["zeroed_answered"]
        and row["cached"] == len(ids) // BLOCK * BLOCK
        for row, ids in zip(rows, prompts, strict=True)
    )
    folder = given.results / "vllm" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    folder.mkdir(parents=True)
    metrics = {
        "engine": given.engine,
        "model": MODEL,
        "vllm": found["alone"][0]["vllm"],
        "as_expected": fine,
        "prompts": rows,
        "machine": record.machine(),
        "packages": record.packages(),
        "revision": record.revision(),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(metrics, indent=1, ensure_ascii=False))
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
