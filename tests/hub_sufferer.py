"""Uses a Hub that breaks in many ways, and once more when it works. Run as a script.

Usage: python hub_sufferer.py MODEL_FOLDER FOLDER FAULT ...
"""

import contextlib
import io
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hub_server import RESOLVE, TOKEN, USER, Handler, Repository, run_hub

MODEL, DATA, PARQUET = f"{USER}/model", f"{USER}/table", f"{USER}/parquet"
WEIGHTS, TABLE, ROWS_FILE = "model.safetensors", "data/train.csv", "data/train.parquet"
ROWS = "smiles,y\n" + "".join(f"{'C' * (n + 1)}O,{n}\n" for n in range(30))


class BrokenHandler(Handler):
    """Breaks where large files are fetched or sent, as `fault` says.

    A status may have the seconds to wait: `429 after 0`.
    """

    fault = ""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # who asked may go away: the report has it
            super().handle()

    @property
    def is_hit(self) -> bool:
        match = RESOLVE.fullmatch(self.path.split("?")[0])
        is_download = match is not None and match["path"] in (WEIGHTS, TABLE, ROWS_FILE)
        return self.command in ("GET", "PUT") and (is_download or self.path.startswith("/lfs/"))

    def answer(self) -> None:
        if self.is_hit and self.fault in ("dies", "silent"):
            if self.fault == "dies":
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                time.sleep(6)
            self.close_connection = True
        else:
            super().answer()

    def send_content(self, status: int, content: bytes, *, headers: dict[str, str]) -> None:
        if self.is_hit and self.fault[:3].isdigit():
            code, *wait = self.fault.split(" after ")
            headers = {"Content-Type": "application/json"} | (
                {"Retry-After": wait[0]} if wait else {}
            )
            super().send_content(int(code), b'{"error": "broken"}', headers=headers)
        elif self.is_hit and self.fault == "too short":
            # the announced length, and half of it before the connection ends
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            super().send_content(status, content, headers=headers)


def catch(do: Callable[[], object]) -> tuple[Any, str]:
    """Return the exit code, or the name of the error, and what is said."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            do()
        except SystemExit as end:
            return end.code or 0, errors.getvalue()
        except Exception as error:  # noqa: BLE001 - the report has it
            return type(error).__name__, str(error)
    return 0, errors.getvalue()


def suffer(folder: Path, faults: list[str], model_folder: Path) -> list[dict[str, Any]]:
    """Predict, finetune and push with each fault, and again without it."""
    import datasets

    from rmat_hf.cli import main
    from rmat_hf.loading import load_predictor

    # it waits a minute before each of 20 more attempts
    datasets.config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 1
    datasets.config.STREAMING_READ_MAX_RETRIES = 2
    output = folder / "out.csv"
    finetune = ["finetune", "--dataset", DATA, "--label-columns", "y", "--geometry", "bounds"]
    finetune += ["--num-train-epochs", "1", "--output-dir", folder / "run"]
    commands = {
        "predict": ["predict", "--model", MODEL, "--smiles", "CCO", "--output", output],
        "parquet": ["predict", "--model", model_folder, "--input", PARQUET, "--output", output],
        "finetune": [*finetune, "--model", model_folder, "--feature-cache", "none"],
    }

    def run(what: str) -> None:
        if what == "push":
            load_predictor(model_folder)[0].push_to_hub(f"{USER}/pushed")
        else:
            sys.argv = ["rmat", *map(str, commands[what])]
            main()

    report = []
    for fault in faults:
        for what in (*commands, "push"):
            for path in (os.environ["HF_HOME"], folder / "run"):
                shutil.rmtree(path, ignore_errors=True)
            output.unlink(missing_ok=True)
            entry: dict[str, Any] = {"fault": fault, "what": what}
            for attempt in ("broken", "repaired"):
                BrokenHandler.fault = fault if attempt == "broken" else ""
                start = time.monotonic()
                found = catch(partial(run, what))
                entry[attempt] = [*found, round(time.monotonic() - start, 1)]
                entry[attempt + "_output"] = output.exists() or (folder / "run").exists()
            report.append(entry)
    return report


@contextlib.contextmanager
def broken_hub(model_folder: Path, folder: Path) -> Iterator[None]:
    """A Hub with a model and a data set, which this process takes for the Hub."""
    with run_hub(BrokenHandler) as hub:
        for kind, repo_id in (("models", MODEL), ("datasets", DATA), ("datasets", PARQUET)):
            hub.repositories[kind, repo_id] = Repository(repo_id, kind, is_private=False)
        hub.repositories["models", MODEL].add_commit(
            "main", {path.name: path.read_bytes() for path in model_folder.iterdir()}
        )
        hub.repositories["datasets", DATA].add_commit("main", {TABLE: ROWS.encode()})
        stream = io.BytesIO()
        pq.write_table(pa.table({"smiles": ["C" * (n + 1) + "O" for n in range(30)]}), stream)
        hub.repositories["datasets", PARQUET].add_commit("main", {ROWS_FILE: stream.getvalue()})
        os.environ |= {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "HF_HUB_ETAG_TIMEOUT": "2",
        }
        yield


if __name__ == "__main__":
    model_path, work = Path(sys.argv[1]), Path(sys.argv[2])
    with broken_hub(model_path, work):
        found = suffer(work, sys.argv[3:], model_path)
    (work / "report.json").write_text(json.dumps(found, indent=1))
