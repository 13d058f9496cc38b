import json
from pathlib import Path
from typing import Any

import pytest

from rmat_hf.data import screen_folder
from rmat_hf.data.screen_folder import ScreenFolder, count_failures, describe_input
from rmat_hf.data.sources import open_table
from rmat_hf.errors import UserError


def build_folder(path: Path, **changes: Any) -> ScreenFolder:
    description = {"num_rows": 10, "shard_size": 4, "output_format": "csv"} | changes
    return ScreenFolder(path, description, keeps_best_only=False)


def test_shards_divide_the_rows(tmp_path: Path) -> None:
    folder = build_folder(tmp_path)
    assert folder.num_shards == 3
    assert [folder.get_rows(idx) for idx in range(3)] == [range(4), range(4, 8), range(8, 10)]
    assert folder.get_shard(2).name == "part-00002.csv"
    folder.get_shard(1).touch()
    assert folder.list_missing(range(3)) == [0, 2]


def test_rows_and_reasons_are_counted(tmp_path: Path) -> None:
    folder = build_folder(tmp_path)
    for idx in range(3):
        rows = "".join(
            f'"a\nb",{"bad atom 7" if row == 5 else ""}\n' for row in folder.get_rows(idx)
        )
        folder.get_shard(idx).write_text(f"id,error\n{rows}")
    counts = folder.count_rows(range(3))
    assert (counts.num_rows, counts.num_failed, counts.num_written) == (10, 1, 10)
    assert counts.failures == {"bad atom N": 1}
    folder.get_shard(0).write_text("id\n1\n")
    with pytest.raises(UserError, match=r"part-00000\.csv cannot be read"):
        folder.count_rows(range(3))


def test_folder_is_prepared_once_and_then_compared(tmp_path: Path) -> None:
    build_folder(tmp_path / "screen").prepare()
    build_folder(tmp_path / "screen").prepare()
    with pytest.raises(UserError, match="num_rows is 10 in one and 11 in the other"):
        build_folder(tmp_path / "screen", num_rows=11).prepare()
    for text in ("{", "[]", "\\xff"):
        (tmp_path / "screen" / "screen.json").write_text(text)
        with pytest.raises(UserError, match=r"screen\.json cannot be read"):
            build_folder(tmp_path / "screen").prepare()


def test_folder_must_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        build_folder(tmp_path / "file").prepare()
    with pytest.raises(UserError, match="Cannot create"):
        build_folder(tmp_path / "file" / "screen").prepare()


def test_too_many_shards_are_refused_with_the_size_to_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen_folder, "MAX_SHARDS", 2)
    with pytest.raises(UserError, match="--shard-size 5 or more"):
        build_folder(tmp_path / "screen").prepare()


def test_file_that_another_task_has_just_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_folder(tmp_path)

    def lose_race(path: Path) -> Any:
        path.write_bytes(b"same")
        raise UserError("the temporary file is gone")

    monkeypatch.setattr(screen_folder, "open_atomically", lose_race)
    folder.write_file("summary.json", b"same")
    with pytest.raises(UserError, match="is gone"):
        folder.write_file("summary.json", b"other")


def test_reasons_are_counted_without_what_is_of_one_molecule() -> None:
    errors = ["cannot parse 'C1'", None, "cannot parse 'N1'", ""]
    assert count_failures(errors) == {"cannot parse '…'": 2}


def test_input_is_described_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    descriptions = []
    for name, text in (("a", "smiles\nC\n"), ("b", "smiles\nC\n"), ("c", "smiles\nN\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in.csv").write_text(text)
        descriptions.append(describe_input(open_table(tmp_path / name / "in.csv")))
    assert descriptions[0] == descriptions[1] != descriptions[2]
    assert descriptions[0]["input"] == "in.csv"
    assert str(tmp_path) not in json.dumps(descriptions)
