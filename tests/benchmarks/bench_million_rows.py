"""Featurize and predict a large library: memory, rows per second, kills, and whether a row is lost.

    python tests/benchmarks/bench_million_rows.py TABLE.parquet OUT.json [ROWS]

Takes the molecules of TABLE (column `smiles`) in order, again from the first when they are used up,
and spoils 5 % of them. Measures ROWS / 10 and ROWS rows with two processes, ROWS / 10 with one too;
kills each verb three times and compares the folder that it then completes with that of an
undisturbed run. Exits with 1 if memory grows by more than a tenth, a row is lost or a byte differs.
"""

import hashlib
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from machine import compute_memory_mib
from versions import write_rows

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor

NUM_ROWS = 1_000_000
SPOILED_EVERY = 20
SPOILED_FIRST = 7
SPOILED = ["C1CC", None, "not a molecule", "", "CC(C)(C)(C)(C)C", "[Xx]", "c1cccc1", "CCO)"]
GEOMETRY = "2d"
ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_radial_basis": 8,
    "pooling": "mean",
}
CHUNK_SIZE = 50_000
SHARD_SIZE = 8192
# A trial with few rows has as many, so that a kill finds some done and some not.
LEAST_SHARDS = 40
SAMPLING_INTERVAL_S = 0.5
LOG_SHOWN = 2000
NUM_KILLS = 3
LARGEST_GROWTH = 1.1


def is_spoiled(rows: Any) -> Any:
    return rows % SPOILED_EVERY == SPOILED_FIRST


def write_library(table: Path, path: Path, *, num_rows: int) -> None:
    """Write molecules, the spoiled ones among them, with an id."""
    smiles = np.resize(pq.read_table(table)["smiles"].to_numpy(), num_rows)
    rows = np.arange(num_rows)
    spoiled = rows[is_spoiled(rows)]
    smiles[spoiled] = np.resize(np.array(SPOILED, dtype=object), len(spoiled))
    library = pa.table(
        {"id": [f"mol-{row}" for row in rows], "smiles": pa.array(smiles, pa.string())}
    )
    pq.write_table(library, path, row_group_size=CHUNK_SIZE)


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = RMatConfig(**ARCHITECTURE, num_labels=1, problem_type="regression")
    RMatForSequenceClassification(config).save_pretrained(folder)
    RMatProcessor(geometry=GEOMETRY).save_pretrained(folder)


def build_command(
    verb: str, library: Path, output: Path, *, num_proc: int, shard_size: int
) -> list[str]:
    command = [sys.executable, "-c", "from rmat_hf.cli import main; main()", verb]
    command += ["--input", str(library), "--num-proc", str(num_proc)]
    command += ["--shard-size", str(shard_size)]
    if verb == "featurize":
        return [*command, "--geometry", GEOMETRY, "--output-dir", str(output)]
    return [*command, "--model", str(library.parent / "model"), "--output", str(output)]


def count_shards(folder: Path) -> int:
    return len(list(folder.glob("part-*")))


def run(
    command: list[str], *, log: Path, kill_at: tuple[Path, int] | None = None
) -> dict[str, float]:
    """Run to the end, or kill -9 when a folder has so many shards; return seconds and peak MiB, or
    the seconds in which the workers of the killed process ended."""
    start = time.monotonic()
    peak = 0.0
    with log.open("ab") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as child:
        while child.poll() is None:
            peak = max(peak, compute_memory_mib(child.pid))
            if kill_at is not None and count_shards(kill_at[0]) >= kill_at[1]:
                workers = psutil.Process(child.pid).children(recursive=True)
                child.kill()
                killed = time.monotonic()
                child.wait()
                _, alive = psutil.wait_procs(workers, timeout=60)
                if alive:
                    sys.exit(f"{len(alive)} workers outlive a killed process by a minute.")
                return {"orphans_s": time.monotonic() - killed}
            time.sleep(SAMPLING_INTERVAL_S)
        if child.returncode != 0:
            # its folder is temporary
            said = log.read_text(encoding="utf-8", errors="replace")[-LOG_SHOWN:]
            sys.exit(f"Exit code {child.returncode}: {' '.join(command)}. It said: ...{said}")
    return {"seconds": time.monotonic() - start, "peak_mib": peak}


def hash_folder(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as stream:
            hashes[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def count_wrong_rows(verb: str, folder: Path, *, num_rows: int) -> int:
    """Return how many rows are missing, double, out of order, or failed without being spoiled."""
    table = ds.dataset(sorted(map(str, folder.glob("part-*.parquet"))))
    expected = np.arange(num_rows)
    if verb == "predict":
        found = table.to_table(["id", "error"]).to_pandas()
        is_wrong = found["error"].notna() != is_spoiled(expected[: len(found)])
        is_wrong |= found["id"] != [f"mol-{row}" for row in range(len(found))]
        return int(is_wrong.sum()) + abs(len(found) - num_rows)
    failed = pd.read_csv(folder / "failed_rows.csv")["row"].to_numpy()
    rows = table.to_table(["row"])["row"].to_numpy()
    is_complete = np.array_equal(rows, np.setdiff1d(expected, failed))
    return int((~is_spoiled(failed)).sum()) + (0 if is_complete else num_rows)


def measure_verb(verb: str, folder: Path, *, num_rows: int) -> dict[str, Any]:
    log = folder / "log.txt"
    shard_size = min(SHARD_SIZE, max(num_rows // LEAST_SHARDS, 1))
    figures: dict[str, Any] = {}
    few = num_rows // 10
    for num_proc, size in ((1, few), (2, few), (2, num_rows)):
        output = folder / f"{verb}-{num_proc}-{size}"
        library = folder / f"{size}.parquet"
        command = build_command(verb, library, output, num_proc=num_proc, shard_size=shard_size)
        measured = run(command, log=log)
        measured["rows_per_s"] = size / measured["seconds"]
        figures[f"{num_proc} x {size}"] = measured
    large = folder / f"{verb}-2-{num_rows}"
    whole = hash_folder(large)
    figures["wrong_rows"] = sum(
        count_wrong_rows(verb, folder / f"{verb}-2-{size}", num_rows=size)
        for size in (few, num_rows)
    )
    figures["memory_growth"] = (
        figures[f"2 x {num_rows}"]["peak_mib"] / figures[f"2 x {few}"]["peak_mib"]
    )
    figures["speedup"] = figures[f"2 x {few}"]["rows_per_s"] / figures[f"1 x {few}"]["rows_per_s"]
    figures["same_bytes_with_two"] = hash_folder(folder / f"{verb}-1-{few}") == hash_folder(
        folder / f"{verb}-2-{few}"
    )
    output = folder / f"{verb}-killed"
    library = folder / f"{num_rows}.parquet"
    command = build_command(verb, library, output, num_proc=2, shard_size=shard_size)
    moments = random.Random(verb)
    shares = sorted(moments.uniform(0.05, 0.85) for _ in range(NUM_KILLS))
    figures["kills"] = []
    for share in shares:
        killed = run(command, log=log, kill_at=(output, round(share * count_shards(large))))
        figures["kills"].append({"num_shards": count_shards(output), **killed})
    run(command, log=log)
    figures["same_bytes_after_kills"] = whole == hash_folder(output)
    return figures


def main() -> None:
    """Print a Markdown table and write the figures as JSON."""
    table, output = map(Path, sys.argv[1:3])
    num_rows = int(sys.argv[3]) if len(sys.argv) > 3 else NUM_ROWS
    figures: dict[str, Any] = {"num_rows": num_rows, "cpu": platform.processor()}
    with tempfile.TemporaryDirectory(dir=output.parent) as name:
        folder = Path(name)
        write_model(folder / "model")
        for size in (num_rows // 10, num_rows):
            write_library(table, folder / f"{size}.parquet", num_rows=size)
        for verb in ("featurize", "predict"):
            figures[verb] = measure_verb(verb, folder, num_rows=num_rows)
            output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    rows = [["verb", "processes x rows", "seconds", "rows/s", "peak MiB"]]
    is_good = True
    for verb in ("featurize", "predict"):
        found = figures[verb]
        is_same = found["same_bytes_with_two"] and found["same_bytes_after_kills"]
        is_good &= not found["wrong_rows"] and is_same
        is_good &= found["memory_growth"] <= LARGEST_GROWTH
        for key in [key for key in found if " x " in key]:
            measured = found.pop(key)
            names = ("seconds", "rows_per_s", "peak_mib")
            rows.append([verb, key, *(f"{measured[name]:.0f}" for name in names)])
        sys.stdout.write(f"{verb}: {json.dumps(found)}\n")
    write_rows(rows)
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
