"""What a result came from: the machine, the packages, the commit and the command that made it."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("unspoken", "torch", "transformers", "tokenizers", "safetensors", "numpy", "gguf", "msgspec")


def machine() -> dict[str, Any]:
    """Describe this machine: processor, cores, memory, GPU; nothing that names it or its user."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def packages() -> dict[str, str]:
    """Return the installed versions of what computes a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def revision() -> dict[str, str]:
    """Return the commit of the code and a hash of what differs from it, new files too; empty outside a checkout."""
    root = Path(__file__).resolve().parent
    if not _git(root, "ls-files", "--", Path(__file__).name):  # Somebody else's checkout, with this installed in it.
        return {"commit": "", "dirty_diff": ""}
    watched = [f":/{name}" for name in ("code", "pyproject.toml", "constraints.txt")]
    commit = _git(root, "rev-parse", "HEAD").strip()
    new = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *watched).split("\0")
    dirty = _git(root, "diff", "HEAD", "--", *watched)
    dirty += "".join(each + (root / each).read_text(encoding="utf-8", errors="replace") for each in new if each)
    return {"commit": commit, "dirty_diff": hashlib.sha256(dirty.encode()).hexdigest()[:16] if dirty else ""}


def command_line() -> str:
    """Return the command, quoted so that it can be given again."""
    return shlex.join(["unspoken", *sys.argv[1:]])


def _git(root: Path, *args: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError:  # No git: an installed package has no commit to tell.
        return ""
    return done.stdout if done.returncode == 0 else ""


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _memory_bytes() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
