"""Atomic output folders: whole or not at all, and never at the cost of what was there."""

import errno
import json
import os
from pathlib import Path

import pytest
from full_disks import small_files

from rmat_hf.errors import UserError
from rmat_hf.output_folder import (
    create_folder_atomically,
    open_atomically,
    save_json,
    validate_output_folder,
)


def write_folder(folder: Path, text: str, *, overwrite: bool = False) -> None:
    with create_folder_atomically(folder, overwrite=overwrite) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file.txt").write_text(text)


def list_tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def fail_in_block(folder: Path, error: BaseException, *, overwrite: bool = False) -> None:
    with create_folder_atomically(folder, overwrite=overwrite) as temporary:
        (temporary / "half.txt").write_text("half")
        raise error


def test_the_folder_appears_with_its_files_and_nothing_beside_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "run", "new")
    assert list_tree(tmp_path) == ["run", "run/sub", "run/sub/file.txt"]
    assert (tmp_path / "run" / "sub" / "file.txt").read_text() == "new"


def test_the_folder_does_not_exist_before_the_block_ends(tmp_path: Path) -> None:
    with create_folder_atomically(tmp_path / "run") as temporary:
        (temporary / "file.txt").write_text("new")
        assert not (tmp_path / "run").exists()
        # on the same file system, so that the last step is a rename
        assert temporary.parent == tmp_path
    assert (tmp_path / "run" / "file.txt").is_file()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_an_exception_passes_through_and_leaves_nothing(
    error: BaseException, tmp_path: Path
) -> None:
    with pytest.raises(type(error)) as caught:
        fail_in_block(tmp_path / "run", error)
    assert caught.value is error
    assert list_tree(tmp_path) == []


def test_an_exception_while_overwriting_leaves_the_old_folder_untouched(tmp_path: Path) -> None:
    write_folder(tmp_path / "run", "old")
    with pytest.raises(ValueError, match="mistake"):
        fail_in_block(tmp_path / "run", ValueError("mistake"), overwrite=True)
    assert list_tree(tmp_path) == ["run", "run/sub", "run/sub/file.txt"]
    assert (tmp_path / "run" / "sub" / "file.txt").read_text() == "old"


def test_a_failing_last_rename_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "run", "old")
    rename = os.replace
    calls: list[Path] = []

    def fail_the_second_time(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk gone")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_the_second_time)
    with pytest.raises(OSError, match="disk gone"):
        write_folder(tmp_path / "run", "new", overwrite=True)
    assert len(calls) == 3
    assert list_tree(tmp_path) == ["run", "run/sub", "run/sub/file.txt"]
    assert (tmp_path / "run" / "sub" / "file.txt").read_text() == "old"


def test_overwrite_replaces_the_folder_and_keeps_none_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stale.txt").write_text("old")
    write_folder(tmp_path / "run", "new", overwrite=True)
    assert list_tree(tmp_path) == ["run", "run/sub", "run/sub/file.txt"]
    assert (tmp_path / "run" / "sub" / "file.txt").read_text() == "new"


def test_a_folder_with_files_is_refused_before_the_block_runs(tmp_path: Path) -> None:
    write_folder(tmp_path / "run", "old")
    has_run = False
    with (
        pytest.raises(UserError, match=r"run' is not empty\. .*--overwrite"),
        create_folder_atomically(tmp_path / "run"),
    ):
        has_run = True
    assert not has_run
    assert (tmp_path / "run" / "sub" / "file.txt").read_text() == "old"
    assert list_tree(tmp_path) == ["run", "run/sub", "run/sub/file.txt"]


def test_an_empty_folder_is_filled_without_overwrite(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_folder(tmp_path / "run", "new")
    assert list_tree(tmp_path) == ["run", "run/sub", "run/sub/file.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_way_is_refused_and_kept(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="run' is a file"):
        write_folder(tmp_path / "run", "new", overwrite=overwrite)
    assert (tmp_path / "run").read_text() == "a file"
    assert list_tree(tmp_path) == ["run"]


def test_a_file_in_place_of_a_parent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"Cannot create .*runs'"):
        write_folder(tmp_path / "runs" / "first", "new")
    assert list_tree(tmp_path) == ["runs"]


def test_a_parent_that_is_not_writable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the superuser may write anywhere, so the answer of the system is set
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(UserError, match="is not writable"):
        validate_output_folder(tmp_path / "run")


def test_missing_parents_are_created(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "b" / "run", "new")
    assert list_tree(tmp_path)[-1] == "a/b/run/sub/file.txt"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_permissions_are_those_of_a_folder_the_user_makes(
    umask: int, mode: int, tmp_path: Path
) -> None:
    previous = os.umask(umask)
    try:
        write_folder(tmp_path / "run", "new")
        umask_after = os.umask(umask)
    finally:
        os.umask(previous)
    assert (tmp_path / "run").stat().st_mode & 0o777 == mode
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {mode & 0o666}
    assert umask_after == umask


def test_a_link_to_a_folder_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    write_folder(tmp_path / "disk" / "run", "old")
    (tmp_path / "latest").symlink_to(tmp_path / "disk" / "run")
    write_folder(tmp_path / "latest", "new", overwrite=True)
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "disk" / "run" / "sub" / "file.txt").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["disk", "latest"]
    assert os.listdir(tmp_path / "disk") == ["run"]


@pytest.mark.parametrize("name", [".", "..", "../work"])
def test_the_current_folder_and_those_above_are_refused_before_any_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(UserError, match="cannot be replaced"):
        validate_output_folder(name, overwrite=True)
    assert list_tree(tmp_path) == ["work"]


def test_a_relative_name_is_taken_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(Path("run"), "new")
    assert list_tree(tmp_path) == ["run", "run/sub", "run/sub/file.txt"]


def test_validation_alone_changes_nothing_in_an_existing_parent(tmp_path: Path) -> None:
    validate_output_folder(tmp_path / "run")
    assert list_tree(tmp_path) == []


def test_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with open_atomically(path) as stream:
        stream.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list_tree(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(OSError(errno.ENOSPC, "No space left on device"), UserError), (KeyboardInterrupt(), None)],
)
def test_file_stays_as_it_was_after_an_error(
    tmp_path: Path, raised: BaseException, expected: type[BaseException] | None
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(expected or type(raised)), open_atomically(path) as stream:
        stream.write(b"new")
        raise raised
    assert path.read_text() == "old"
    assert list_tree(tmp_path) == ["file"]


def test_json_that_cannot_be_written_leaves_the_older_file_alone(tmp_path: Path) -> None:
    save_json(tmp_path / "file.json", {"old": True})
    with small_files(1000), pytest.raises(OSError, match="File too large"):
        save_json(tmp_path / "file.json", ["new"] * 1000)
    assert json.loads((tmp_path / "file.json").read_text()) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
