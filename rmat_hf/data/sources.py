"""Find the table behind a name: files, a folder, a bundled data set or a data set on the Hub.

A folder, here or on the Hub, decides nothing but which of its own tables are its splits: archives,
scripts, addresses and files outside of it are never opened, whatever its README says.
"""

import difflib
import glob
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from rmat_hf.data.table_files import HUB_PREFIX, KINDS, find_kind, open_file
from rmat_hf.data.tables import Table, join_tables
from rmat_hf.errors import UserError, explained_reading

logger = logging.getLogger(__name__)

README_FILE = "README.md"
SPLIT_COLUMN = "split"
SPLIT_NAMES = {"train": "train", "validation": "valid", "valid": "valid", "test": "test"}
# Words in the name of a file, or of a folder above it, that tell its split.
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclass(frozen=True)
class Source:
    """Tables by split, without splits under an empty name; path or address of a file; all files."""

    splits: dict[str, list[str]]
    locate: Callable[[str], str] = str
    files: Sequence[str] = ()


def list_bundled_datasets() -> list[str]:
    """Return the names of the data sets that come with the package."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*/*.csv"))


def open_table(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    split: str | None = None,
    joins_splits: bool = False,
) -> Table:
    """Open the table behind a name.

    Args:
        source (`str` or `os.PathLike`):
            A file, as in [`open_file`]; a folder or a glob of files of one kind, in the order of
            their names; a name of `list_bundled_datasets`; or a data set on the Hub. Parquet files
            on the Hub are read where they are, others are downloaded.
        split (`str`, *optional*): Split of a data set that has several, by its README or the names
            of its files.
        joins_splits (`bool`, *optional*, defaults to `False`):
            All splits follow each other, with a column `split` added; `Table.split_column` is set
            if they are train and test, with or without validation.
    """
    name = os.fspath(source)
    with explained_reading(name):
        found = _find_local_files(name)
    if found is None:
        found = find_hub_files(name, revision=revision)
    elif revision is not None:
        raise UserError(f"{name} is not on the Hub, so it has no revision {revision!r}.")
    splits = list(found.splits)
    if joins_splits:
        return _join_splits(found, source=name)
    if (split is None and len(splits) > 1) or split not in (None, *splits):
        raise UserError(
            f"{name} has the splits {', '.join(splits)}. Choose one by --split or --input-split."
            if splits != [""]
            else f"{name} has no splits: leave that option out."
        )
    return _open_files(found, split or splits[0], source=name)


def _open_files(found: Source, split: str, *, source: str) -> Table:
    tables = [open_file(found.locate(file)) for file in found.splits[split]]
    return tables[0] if len(tables) == 1 else join_tables(tables, source=source)


def _join_splits(found: Source, *, source: str) -> Table:
    names = list(found.splits)
    tables = [_open_files(found, split, source=source) for split in names]
    if len(tables) == 1:
        return tables[0]
    if SPLIT_COLUMN in tables[0].column_names:
        return join_tables(tables, source=source)
    words = {SPLIT_COLUMN: [SPLIT_NAMES.get(split, split) for split in names]}
    is_complete = {"train", "test"} <= set(names) <= set(SPLIT_NAMES)
    table = join_tables(tables, source=source, words=words)
    return replace(table, split_column=SPLIT_COLUMN if is_complete else None)


def _find_local_files(name: str) -> Source | None:
    """Return the files behind a name, `None` if it is to be found on the Hub."""
    path = Path(name)
    if name in list_bundled_datasets():
        return Source({"": [str(Path(__file__).parent / name / f"{name}.csv")]})
    if path.is_dir():
        return _find_files_of_folder(path)
    if path.exists():
        return Source({"": [name]})
    if found := sorted(glob.glob(name, recursive=True)):
        return Source({"": found})
    similar = difflib.get_close_matches(name, list_bundled_datasets(), n=1)
    if similar and "/" not in name:
        raise UserError(f"There is no data set {name!r} here. Did you mean {similar[0]!r}?")
    is_path = glob.has_magic(name) or find_kind(name) or path.is_absolute()
    return Source({"": [name]}) if is_path else None


def _find_files_of_folder(folder: Path) -> Source:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        is_read = find_kind(path.name) or path.name == README_FILE
        if is_read and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} is a link to a file outside of the folder. Name that file.")
    names = [path.relative_to(folder).as_posix() for path in files]
    return _group_files(names, lambda file: str(folder / file), source=str(folder))


def find_hub_files(name: str, *, revision: str | None, with_download: bool = False) -> Source:
    """Find the tables of a data set on the Hub."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    def locate(file: str) -> str:
        if find_kind(file) == ".parquet" and not with_download:
            return f"{HUB_PREFIX}datasets/{name}@{info.sha}/{file}"
        return hf_hub_download(name, file, repo_type="dataset", revision=info.sha)

    bundled = ", ".join(list_bundled_datasets())
    way_out = f"It is neither a file, a folder nor a bundled data set ({bundled})."
    with explained_reading(name, way_out=way_out):
        try:
            info = HfApi().dataset_info(name, revision=revision)
        except OfflineModeIsEnabled:
            options: dict[str, Any] = {"repo_type": "dataset", "local_files_only": True}
            folder = Path(snapshot_download(name, revision=revision, **options))
            names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.*"))]
            return _group_files(names, lambda file: str(folder / file), source=name)
        files = [file.rfilename for file in info.siblings or []]
        return _group_files(sorted(files), locate, source=name)


def _group_files(files: list[str], locate: Callable[[str], str], *, source: str) -> Source:
    """Divide the names of a folder's files, from the folder on, into splits."""
    # what `datasets` keeps of computations stands beside the data in a saved folder
    hidden = re.compile(r"(^|/)(\.|cache-[^/]*\.arrow$)")
    tables = [file for file in files if find_kind(file) and not hidden.search(file)]
    # beside tables, what is called .txt is a note
    tables = [file for file in tables if find_kind(file) != ".txt"] or tables
    if any(find_kind(file) == ".parquet" for file in tables):
        tables = [file for file in tables if find_kind(file) == ".parquet"]
    splits: dict[str, list[str]] = {}
    if README_FILE in files:
        patterns = _read_card(locate(README_FILE))
        splits = {
            split: [file for file in tables if any(fnmatchcase(file, form) for form in wanted)]
            for split, wanted in patterns.items()
        }
    if not splits:
        # those at the top, or else those below
        tables = [file for file in tables if "/" not in file] or tables
        for file in tables:
            splits.setdefault(_find_split_word(file), []).append(file)
    ignored = splits.pop("", []) if len(splits) > 1 else []
    if ignored:
        logger.warning("%s: files without a split in their names are left out: %s", source, ignored)
    if not splits or not all(splits.values()):
        reason = f"that {README_FILE} names" if splits else "of molecules"
        raise UserError(
            f"{source} is a folder without the files {reason}. It needs {', '.join(KINDS)} files "
            "of its own."
        )
    order = sorted(splits, key=lambda split: [*SPLIT_NAMES, split].index(split))
    return Source({split: splits[split] for split in order}, locate, files)


def _find_split_word(file: str) -> str:
    for part in reversed(PurePosixPath(file.lower()).parts):
        for word in re.split(r"[^a-z]+", part):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return ""


def _read_card(path: str) -> dict[str, list[str]]:
    """Return the patterns of files by split that a README names, none if it names none."""
    import yaml  # type: ignore[import-untyped]  # typeshed's stubs are not installed
    from huggingface_hub import metadata_load

    faults = (yaml.YAMLError, AttributeError, TypeError, KeyError, IndexError)
    way_out = "Correct the files of its splits, or name the files themselves."
    with explained_reading(path, way_out=way_out, also=faults):
        card = metadata_load(path) or {}
        configs = [config for config in card.get("configs") or [] if "data_files" in config]
        if len(configs) > 1:
            configs = [config for config in configs if config["config_name"] == "default"]
        data_files = configs[0]["data_files"] if configs else {}
        if isinstance(data_files, list) and isinstance(data_files[0], dict):
            data_files = {entry["split"]: entry["path"] for entry in data_files}
        elif not isinstance(data_files, dict):
            data_files = {"": data_files}
        patterns = {}
        for split, found in data_files.items():
            words = [found] if isinstance(found, str) else found
            patterns[str(split)] = [w.removeprefix("./").replace("**/", "*") for w in words]
        return patterns
