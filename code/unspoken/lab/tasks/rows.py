"""Rows of a data set: of local JSON lines without any library, of everything else by `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from unspoken.errors import StorageError, UnspokenError, UsageError
from unspoken.lab.tasks.lines import is_file, read_lines
from unspoken.lab.tasks.templates import Row

if TYPE_CHECKING:
    from types import ModuleType

FILE_KINDS = ("json", "csv", "parquet")
LINES = (".jsonl", ".ndjson")
OLDEST_DATASETS = 4  # Earlier ones run code that comes with a data set, if they are asked to.


class DataFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `datasets.load_dataset` is told besides path and name.

    Attributes:
        data_files: A file, several, or files by split; relative to the description.
        data_dir: A folder of the data set.
        revision: The hub's commit or tag; a data set that may change should have one.
    """

    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    data_dir: str | None = None
    revision: str | None = None

    def by_split(self, folder: Path | None) -> dict[str, list[str]]:
        """Return the files of each split; a split of no name is `train`.

        Args:
            folder: What they are relative to, unless they are addresses; None for those of a hub's data set, which are
                relative to that.
        """
        files = self.data_files
        named: Mapping[str, str | list[str]] = files if isinstance(files, dict) else {"train": files or []}
        return {
            split: [file for each in ([some] if isinstance(some, str) else some) for file in _files(each, folder)]
            for split, some in named.items()
        }


def load_rows(path: str, name: str | None, split: str | None, files: DataFiles, folder: Path) -> tuple[Row, ...]:
    """Return the rows of one split of a data set, in its order.

    Args:
        path: A hub id, a local folder, or `json`, `csv` or `parquet` for the files named.
        name: The data set's configuration.
        split: Which split; None if there is only one.
        files: Files and the like.
        folder: What local paths are relative to.

    Raises:
        UsageError: If there is no such split, no file is named, or a line is no JSON object.
        StorageError: If the library is missing, or the data set or a file cannot be read.
    """
    here = path in FILE_KINDS or (folder / path).is_dir()
    by_split = files.by_split(folder if here else None)
    if path in FILE_KINDS:
        chosen = by_split[_split(path, split, list(by_split))]
        if not chosen:
            raise UsageError(
                f"`dataset_path: {path}` needs files, and none is named.",
                "Add `dataset_kwargs: {data_files: FILE}`, relative to the description.",
            )
        _require_files(chosen)
        if path == "json" and all(each.endswith(LINES) and "://" not in each for each in chosen):
            found: list[Any] = [row for each in chosen for row in read_lines(each, dict, "one JSON object per line")]
            return tuple(Row(at, row) for at, row in enumerate(found, start=1))
        path_or_folder: str = path
    else:
        path_or_folder = str(folder / path) if here else path
    given = {key: value for key, value in (("data_dir", files.data_dir), ("revision", files.revision)) if value}
    if files.data_files is not None:
        given["data_files"] = by_split  # type: ignore[assignment]
    with _told(path, name):
        held: Mapping[str, Any] = _library().load_dataset(path_or_folder, name, **given)
        rows = held[_split(path, split, list(held))]
        return tuple(Row(at, row) for at, row in enumerate(rows, start=1))


def _split(path: str, wanted: str | None, there: list[str]) -> str:
    if wanted is None and len(there) == 1:
        return there[0]
    if wanted not in there:
        problem = "no `test_split` is named" if wanted is None else f"there is no '{wanted}'"
        raise UsageError(
            f"The data set '{path}' has the splits {', '.join(there)}, and {problem}.",
            "Set `test_split` to one of them.",
        )
    return wanted


def _require_files(files: list[str]) -> None:
    for each in files:
        if "://" not in each and not is_file(each):
            raise StorageError(f"There is no data file {each}.", "Paths are relative to the task's description.")


def _files(named: str, folder: Path | None) -> list[str]:
    """Return the files that a name or a pattern stands for; the name itself where there is none."""
    if folder is None or "://" in named:
        return [named]
    base = folder.absolute()
    if is_file(str(base / named)):
        return [str(base / named)]
    return [str(base / each) for each in sorted(glob(named, root_dir=base, recursive=True))] or [str(base / named)]


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise StorageError(
            "This task's data set is read with the library datasets, which is not installed.",
            'Install it: pip install "unspoken[datasets]"; local .jsonl files do without.',
        ) from error
    if int(str(datasets.__version__).partition(".")[0]) < OLDEST_DATASETS:
        raise UsageError(
            f"datasets {datasets.__version__} is installed, and it may run code that comes with a data set.",
            'Install a newer one: pip install "unspoken[datasets]".',
        )
    module: ModuleType = datasets
    return module


@contextmanager
def _told(path: str, name: str | None) -> Iterator[None]:
    """Turn whatever goes wrong while a data set is read into an error that says what to do."""
    try:
        yield
    except UnspokenError:
        raise
    except Exception as error:  # Hub, network, disk, parsers of many formats: each has exceptions of its own.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise StorageError(
            f"The data set '{path}'{f' ({name})' if name else ''} cannot be loaded: {lines[0].rstrip('.')}.",
            "Give a hub id, a folder, or json, csv or parquet with `dataset_kwargs: {data_files: ...}`; "
            "a hub's data set needs the network once.",
        ) from error
