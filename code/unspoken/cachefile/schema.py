"""Print the schema of a cache file's manifest: `python -m unspoken.cachefile.schema > docs/manifest.schema.json`."""

from __future__ import annotations

import json
import sys

import msgspec

from unspoken.cachefile.header import FileManifest


def schema() -> str:
    """Return the schema as JSON, sorted and indented, so that two versions of it can be compared line by line."""
    return json.dumps(msgspec.json.schema(FileManifest), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema())
