import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pytest

from rmat_hf.data.sources import list_bundled_datasets, open_source
from rmat_hf.data.training_table import load_training_table
from rmat_hf.errors import UserError

REPO_ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "train.csv": b"smiles,y\nCCO,1.5\nC,2\nN,2.5\n",
    "test.csv": b"smiles,y\nbad,1\nO,4\n",
}
LOAD = """
import json, sys
from rmat_hf.data.training_table import load_training_table
loaded = load_training_table(
    sys.argv[1], smiles_column="smiles", label_columns=["y"], problem_type="regression",
    revision=sys.argv[2] or None,
)
print(json.dumps([loaded.dataset.to_dict(), [row.row for row in loaded.dropped]]))
"""


def write_folder(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class HubHandler(BaseHTTPRequestHandler):
    """The reading half of the Hub's interface, for one data set."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        api = "/api/datasets/lab/solubility"
        info = {"id": "lab/solubility", "sha": COMMIT, "private": False, "tags": []}
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self.answer({**info, "siblings": [{"rfilename": name} for name in HUB_FILES]})
        elif path == f"{api}/tree/{COMMIT}":
            self.answer([self.describe(name) for name in HUB_FILES])
        elif path.startswith("/datasets/lab/solubility/resolve/"):
            revision, name = path.split("/", 6)[5:]
            self.answer(HUB_FILES.get(name) if revision in ("main", COMMIT) else None)
        else:
            self.answer(None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        names = json.loads(body)["paths"] if body.startswith("{") else []
        self.answer([self.describe(name) for name in names if name in HUB_FILES])

    def describe(self, name: str) -> dict[str, object]:
        return {
            "type": "file",
            "oid": f"{len(name):040d}",
            "size": len(HUB_FILES[name]),
            "path": name,
        }

    def answer(self, content: object) -> None:
        found = {"error": "not found"} if content is None else content
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(404 if content is None else 200)
        if content is None:
            code = "Repo" if "lab/solubility" not in self.path else "Revision"
            is_entry = any(f"/{revision}/" in self.path for revision in ("main", COMMIT))
            self.send_header("X-Error-Code", f"{'Entry' if is_entry else code}NotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{len(body):040d}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep the requests off the terminal."""


@pytest.fixture
def hub_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def load_in_new_process(
    name: str, *, revision: str, environment: dict[str, str], home: Path
) -> subprocess.CompletedProcess[str]:
    """The address of the Hub is read when its client is imported, hence a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", LOAD, name, revision],
        env={
            **os.environ,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(REPO_ROOT),
            **environment,
        },
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("revision", ["main", pytest.param("", marks=pytest.mark.slow)])
def test_hub_data_set_is_read_with_its_splits(hub_url: str, tmp_path: Path, revision: str) -> None:
    done = load_in_new_process(
        "lab/solubility", revision=revision, environment={"HF_ENDPOINT": hub_url}, home=tmp_path
    )
    assert done.returncode == 0, done.stderr
    columns, dropped = json.loads(done.stdout.splitlines()[-1])
    assert columns["row"] == [0, 1, 2, 4]
    assert columns["smiles"] == ["CCO", "C", "N", "O"]
    assert columns["labels"] == [[1.5], [2.0], [2.5], [4.0]]
    assert columns["split"] == ["train", "train", "train", "test"]
    assert dropped == [3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "revision"), [("lab/nothing", ""), ("nothing", ""), ("lab/solubility", "v9")]
)
def test_unknown_hub_data_set_is_a_one_line_error(
    hub_url: str, tmp_path: Path, name: str, revision: str
) -> None:
    done = load_in_new_process(
        name, revision=revision, environment={"HF_ENDPOINT": hub_url}, home=tmp_path
    )
    message = done.stderr.splitlines()[-1]
    assert message.startswith("rmat_hf.errors.UserError:")
    assert f"{name!r} is neither a file nor a bundled data set (freesolv)" in message


@pytest.mark.slow
def test_without_a_connection_the_error_is_the_same(tmp_path: Path) -> None:
    done = load_in_new_process(
        "lab/solubility", revision="", environment={"HF_HUB_OFFLINE": "1"}, home=tmp_path
    )
    message = done.stderr.splitlines()[-1]
    assert message.startswith("rmat_hf.errors.UserError: 'lab/solubility' is neither")


def test_bundled_data_sets_are_listed_and_open_by_name() -> None:
    assert list_bundled_datasets() == ["freesolv"]
    table, own_split_column = open_source("freesolv", revision=None)
    assert (table.num_rows, own_split_column) == (642, None)
    assert table.column_names[:2] == ["smiles", "hydration_free_energy"]


@pytest.mark.parametrize("name", ["missing.csv", "missing.SDF", "missing.parquet"])
def test_missing_file_is_not_looked_for_on_the_hub(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        open_source(tmp_path / name, revision=None)


def test_file_of_another_kind_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "table.xlsx").write_text("x")
    with pytest.raises(UserError, match=r"Use \.csv, \.parquet or \.sdf"):
        open_source(tmp_path / "table.xlsx", revision=None)


@pytest.mark.parametrize("dataset", ["freesolv", "table.csv"])
def test_revision_is_for_the_hub_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    monkeypatch.chdir(write_folder(tmp_path, {"table.csv": "smiles\nC\n"}))
    with pytest.raises(UserError, match="is not on the Hub, so it has no revision 'main'"):
        open_source(dataset, revision="main")


def test_folder_with_one_part_has_no_split(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"data.csv": "smiles,y\nC,1\nN,2\n"})
    table, own_split_column = open_source(folder, revision=None)
    assert (table.column_names, own_split_column) == (["smiles", "y"], None)


def test_splits_of_a_folder_follow_each_other_and_validation_is_called_valid(
    tmp_path: Path,
) -> None:
    parts = {"test": "O,3", "train": "C,1", "validation": "N,2"}
    files = {f"{part}.csv": f"smiles,y\n{row}\n" for part, row in parts.items()}
    table, own_split_column = open_source(write_folder(tmp_path / "set", files), revision=None)
    assert own_split_column == "split"
    chunks = list(table.iterate_chunks(9))
    rows = [[values[0] for values in chunk.columns.values()] for chunk in chunks]
    assert rows == [["C", 1, "train"], ["N", 2, "valid"], ["O", 3, "test"]]


@pytest.mark.parametrize("parts", [("train", "validation"), ("train", "test", "extra")])
def test_splits_without_train_and_test_or_with_others_are_not_taken_unasked(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n" + "".join(
        f"  - split: {part}\n    path: {part}.csv\n" for part in parts
    )
    files = {f"{part}.csv": "smiles,y\nC,1\n" for part in parts}
    folder = write_folder(tmp_path / "set", {**files, "README.md": f"{card}---\n"})
    table, own_split_column = open_source(folder, revision=None)
    assert own_split_column is None
    assert table.num_rows == len(parts)


def test_column_called_split_is_left_as_it_is(tmp_path: Path) -> None:
    files = {f"{part}.csv": "smiles,y,split\nC,1,mine\n" for part in ("train", "test")}
    table, own_split_column = open_source(write_folder(tmp_path / "set", files), revision=None)
    assert own_split_column is None
    assert [chunk.columns["split"] for chunk in table.iterate_chunks(9)] == [["mine"], ["mine"]]


def test_folder_without_data_is_a_one_line_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"notes.bin": "x"})
    with pytest.raises(UserError, match="the Hub gives: ") as caught:
        open_source(folder, revision=None)
    assert "\n" not in str(caught.value)


def test_folder_trains_with_its_own_split(tmp_path: Path) -> None:
    files = {
        "train.csv": "smiles,y\nC,1\nN,2\n",
        "validation.csv": "smiles,y\nO,3\n",
        "test.csv": "smiles,y\nF,4\n",
    }
    loaded = load_training_table(
        write_folder(tmp_path / "set", files),
        smiles_column="smiles",
        label_columns=["y"],
        problem_type="regression",
    )
    assert loaded.dataset["split"][:] == ["train", "train", "valid", "test"]
    assert loaded.dataset["smiles"][:] == ["C", "N", "O", "F"]
