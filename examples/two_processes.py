"""A hand-over through a file: this process reads, a second one answers, and only the file passes between them.

    python examples/two_processes.py

What stands in the file: the content columns, position-free, in bfloat16. What does not: the sender's system
prompt, its chat header and, here, the token ids. docs/format.md describes every byte.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from unspoken import Agent, load_model, peek, write_cache
from unspoken.channels.kv import content_columns
from unspoken.transforms.cast import Cast

REPORT = (
    "Notes from the harbour. The grand library is run by Peter and is painted green. The budget for next year is "
    "still open. The iron ferry is closed on Friday. A short inspection found everything in order."
)
QUESTION = "On which day is the iron ferry closed?"


def main() -> None:
    """Write what Lyra understood to a file and let another process ask about it."""
    lyra = Agent("lyra", load_model("smollm2-135m"))
    segment = Cast("bfloat16")(content_columns(lyra.read(REPORT).cache)).without_tokens()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "harbour.kv.safetensors"
        write_cache(segment, path)
        header = peek(path)  # reads the header only, and needs neither torch nor a model
        print(f"{path.name}: {header.file_bytes:,} bytes, digest {header.manifest.digest[:16]}")
        print(f"asking a second process: {QUESTION}")
        # The same as `unspoken ask --cache FILE QUESTION` in another terminal.
        command = [sys.executable, "-m", "unspoken", "ask", QUESTION, "--cache", str(path), "--tokens", "16"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    print(answer.stdout.strip())
    print(answer.stderr.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
