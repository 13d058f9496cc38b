"""Cost of featurization against the protocol of the 2021 publication, in one process and thread.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_featurization.py TABLE.parquet OUT.json [ROWS]

The variants take turns block by block. A ratio is that of the summed times; the median over the
blocks stands beside it.
"""

import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from featurization_protocol import featurize_by_protocol
from rdkit import Chem, RDLogger
from rdkit.Chem import rdDistGeom
from versions import write_rows

from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.stored_features import build_features_column
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.trainer import FeaturizedRows, RMatDataCollator

PROCESSORS = {
    "same protocol (etkdg_v2, UFF)": RMatProcessor(conformer_method="etkdg_v2", force_field="uff"),
    "the same with etkdg_v3": RMatProcessor(force_field="uff"),
    "no force field (etkdg_v3)": RMatProcessor(),
    "no force field (etkdg_v2)": RMatProcessor(conformer_method="etkdg_v2"),
    "heavy atoms only (etkdg_v3)": RMatProcessor(conformer_hydrogens=False),
    "distance geometry, heavy atoms only": RMatProcessor(
        conformer_method="distance_geometry", conformer_hydrogens=False
    ),
    "bounds": RMatProcessor(geometry="bounds"),
}
BATCH_SIZE = 32
BLOCK = 20
REPETITIONS = 5


def measure(function: Callable[[Any], Any], items: Iterable[Any]) -> float:
    start = time.perf_counter()
    for item in items:
        function(item)
    return time.perf_counter() - start


def embed(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if rdDistGeom.EmbedMolecule(mol, randomSeed=1) == -1:
        rdDistGeom.EmbedMolecule(mol, randomSeed=1, useRandomCoords=True)
    return Chem.RemoveHs(mol)


def time_featurization(smiles: list[str]) -> dict[str, np.ndarray]:
    """Return the seconds of every block, by variant."""
    given = RMatProcessor(geometry="given")
    names = ["protocol", *PROCESSORS, "conformer given", "MolFromSmiles"]
    times: dict[str, list[float]] = {name: [] for name in names}
    for start in range(0, len(smiles), BLOCK):
        block = smiles[start : start + BLOCK]
        mols = [embed(text) for text in block]
        times["protocol"].append(measure(featurize_by_protocol, block))
        for name, processor in PROCESSORS.items():
            times[name].append(measure(processor.featurize, block))
        times["conformer given"].append(measure(given.featurize, mols))
        times["MolFromSmiles"].append(measure(Chem.MolFromSmiles, block))
    return {name: np.array(values) for name, values in times.items()}


def time_second_epoch(smiles: list[str], *, geometry: Any) -> dict[str, float]:
    """Return the seconds per molecule of reading, of reading + expanding + padding, of parsing."""
    processor = RMatProcessor(geometry=geometry)
    packed = [outcome.features for outcome in featurize_molecules(smiles, processor)]
    features = build_features_column(packed)
    rows = Dataset.from_dict({"features": features, "labels": [[0.0]] * len(smiles)})
    dataset = FeaturizedRows(rows)
    collator = RMatDataCollator(processor)
    starts = range(0, len(smiles) - BATCH_SIZE + 1, BATCH_SIZE)
    batches = [list(range(start, start + BATCH_SIZE)) for start in starts]
    num_rows = len(batches) * BATCH_SIZE
    times: dict[str, list[float]] = {"read": [], "read, expand, pad": [], "parse": []}
    for _ in range(REPETITIONS):
        times["read"].append(measure(dataset.__getitems__, batches))
        times["read, expand, pad"].append(
            measure(lambda batch: collator(dataset.__getitems__(batch)), batches)
        )
        times["parse"].append(measure(Chem.MolFromSmiles, smiles[:num_rows]))
    return {
        f"{name} ({geometry})": float(np.median(values)) / num_rows
        for name, values in times.items()
    }


def time_cache(smiles: list[str]) -> dict[str, float]:
    """Return the seconds per molecule of a first and of a second run with a cache."""
    processor = RMatProcessor(geometry="bounds")

    def run(folder: str) -> None:
        featurize_molecules(smiles, processor, cache_dir=folder)

    with tempfile.TemporaryDirectory() as folder:
        return {
            f"{run_name} run with a cache (bounds)": measure(run, [folder]) / len(smiles)
            for run_name in ("first", "second")
        }


def measure_bytes(smiles: list[str]) -> dict[str, float]:
    """Return the bytes per molecule of the packed features."""
    sizes = {}
    for name, processor in (
        ("generated coordinates", RMatProcessor(conformer_hydrogens=False)),
        ("bounds", RMatProcessor(geometry="bounds")),
    ):
        outcomes = featurize_molecules(smiles, processor)
        packed = [outcome.features for outcome in outcomes if not outcome.failure]
        file = io.BytesIO()
        pq.write_table(
            pa.table({"features": build_features_column(packed)}), file, compression="zstd"
        )
        sizes[f"{name}, raw"] = float(np.mean([len(features) for features in packed]))
        sizes[f"{name}, Parquet with zstd"] = len(file.getvalue()) / len(packed)
    return sizes


def main() -> None:
    """Print Markdown tables and write the figures as JSON."""
    RDLogger.DisableLog("rdApp.*")
    table, output = sys.argv[1:3]
    num_rows = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    smiles = pq.read_table(table).slice(0, num_rows).column("smiles").to_pylist()
    for processor in PROCESSORS.values():
        processor.on_conformer_failure = "bounds"
        processor.featurize("CCO")
    times = time_featurization(smiles)
    figures: dict[str, Any] = {"ms": {}, "ratio": {}, "median_ratio": {}}
    for name, values in times.items():
        figures["ms"][name] = float(values.sum()) / len(smiles) * 1e3
        figures["ratio"][name] = float(times["protocol"].sum() / values.sum())
        figures["median_ratio"][name] = float(np.median(times["protocol"] / values))
    figures["seconds"] = time_cache(smiles)
    for geometry in ("2d", "bounds"):
        figures["seconds"] |= time_second_epoch(smiles, geometry=geometry)
    figures["bytes"] = measure_bytes(smiles)
    Path(output).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    rows = [["variant", "ms per molecule", "times the protocol", "median of blocks"]]
    for name in times:
        cells = [f"{figures[key][name]:.2f}" for key in ("ms", "ratio", "median_ratio")]
        rows.append([name, *cells])
    write_rows(rows)
    sys.stdout.write("\n")
    microseconds = [(name, f"{it * 1e6:.2f}") for name, it in figures["seconds"].items()]
    write_rows([("step", "µs per molecule"), *microseconds])
    sys.stdout.write("\n")
    sizes = [(name, f"{size:.1f}") for name, size in figures["bytes"].items()]
    write_rows([("store", "bytes per molecule"), *sizes])


if __name__ == "__main__":
    main()
