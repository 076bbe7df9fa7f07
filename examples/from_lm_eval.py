"""A task of lm-evaluation-harness on a pair of agents: the receiver scores options about a text it has not seen.

    python examples/from_lm_eval.py          # needs the extra lm-eval

Each context is cut where its last line "Question: ..." begins: what stands before it is the sender's to read, the rest
is asked of the receiver.
"""

from __future__ import annotations

import os
from pathlib import Path

TASKS = Path(__file__).resolve().parent.parent / "data" / "tasks" / "lm-eval"


def main() -> None:
    """Print the harness' accuracy with the sender's cache, without it, and with another text's."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(TASKS.parents[2])  # The task names its file from the project's folder.
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from unspoken import load_model
    from unspoken.harness.lm_eval_model import PairLM
    from unspoken.harness.pair import Pair

    model = load_model("smollm2-135m")
    tasks = TaskManager(include_path=str(TASKS), include_defaults=False)
    for channel in ("none", "kv", "kv-deranged"):
        pair = PairLM(pair=Pair(model, channel))
        found = simple_evaluate(pair, tasks=["harbours"], task_manager=tasks, bootstrap_iters=0)
        moved = found["config"]["unspoken"]["bytes_moved"]
        print(f"{channel:<12} {found['results']['harbours']['acc,none']:.2f} right, {moved:,} bytes moved")


if __name__ == "__main__":
    main()
