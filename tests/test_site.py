"""The site: it builds, its links lead somewhere, its pages are complete and their blocks run."""

import dataclasses
import gzip
import html.parser
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import Crippen, rdDistGeom
from safetensors.torch import load_file
from transformers import Trainer

import rmat_hf
from rmat_hf import RMatConfig, RMatForSequenceClassification, RMatProcessor
from rmat_hf.cli import VERBS, build_parser, main

REPO_ROOT = Path(__file__).resolve().parents[1]
DOCS = REPO_ROOT / "docs"
FREESOLV = REPO_ROOT / "rmat_hf" / "data" / "freesolv" / "freesolv.csv"
# extending.md has a test of its own, and what is generated has examples that are run as docstrings
PAGES = [
    REPO_ROOT / "README.md",
    REPO_ROOT / "SKILL.md",
    *(
        page
        for page in sorted(DOCS.rglob("*.md"))
        if page.name != "extending.md"
        and "reference" not in page.parts
        and "\n```" in page.read_text(encoding="utf-8")
    ),
]
BLOCK = re.compile(r"(?:<!-- (.+?) -->\n)?^```(bash|python)\n(.+?)^```", re.M | re.S)
NOT_RUN = "not run: "
# the only reasons for which a block may stay unexecuted
REASONS = {
    "it installs",
    "it reads the Hub",
    "hours",
    "it takes hours",
    "bitsandbytes wants a GPU",
    "these are the tests",
    "tests/data/test_check.py does",
}
NUM_ROWS, NUM_LIBRARY = 40, 60


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    load_script("write_reference").write_reference(folder)
    return folder / "reference"


@pytest.mark.parametrize("name", rmat_hf.__all__)
def test_every_exported_name_has_a_page_and_is_listed(name: str, reference: Path) -> None:
    public = getattr(rmat_hf, name)
    page = (reference / "python" / f"{name}.md").read_text(encoding="utf-8")
    assert f"::: {public.__module__}.{name}" in page
    assert f"({name}.md)" in (reference / "python" / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_page_with_all_its_flags(verb: str, reference: Path) -> None:
    page = (reference / "commands" / f"{verb}.md").read_text(encoding="utf-8")
    flags = [it for action in build_parser(verb)._actions for it in action.option_strings]
    assert all(flag in page for flag in flags if flag not in ("-h", "--help"))
    assert "`exit_code`" in page
    assert f"({verb}.md)" in (reference / "commands" / "index.md").read_text(encoding="utf-8")


def test_every_field_of_the_configuration_has_its_default(reference: Path) -> None:
    page = (reference / "configuration.md").read_text(encoding="utf-8")
    own = RMatConfig.__annotations__
    declared = [field.name for field in dataclasses.fields(RMatConfig) if field.name in own]
    assert len(declared) > 30 and all(f"| `{name}` | `" in page for name in declared)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (REPO_ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    for page in sorted(DOCS.rglob("*.md")):
        name = page.relative_to(DOCS).as_posix()
        assert name in navigation or name.startswith("reference/"), name


class Links(html.parser.HTMLParser):
    """What a page loads and links, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        target = values.get("href") or values.get("src")
        is_link = tag == "a" or values.get("rel") == "canonical"
        if target:
            (self.linked if is_link else self.loaded).append(target)


@pytest.mark.slow
def test_the_site_builds_offline_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings_handlers", reason="needs the extra docs")
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(REPO_ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "rmat_hf").symlink_to(REPO_ROOT / "rmat_hf")
    load_script("write_reference").write_reference(tmp_path / "docs")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"],
        cwd=tmp_path,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    site = tmp_path / "site"
    pages = {path: Links() for path in site.rglob("*.html")}
    for path, links in pages.items():
        links.feed(path.read_text(encoding="utf-8"))
    assert len(pages) > len(rmat_hf.__all__) + len(VERBS) + 25
    for path, links in pages.items():
        assert not [it for it in links.loaded if "//" in it], f"{path} loads from elsewhere"
        for link in links.linked:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            target = path if not parts.path else target
            assert target.is_file(), f"{path}: {link}"
            if parts.fragment and target in pages and not parts.fragment.startswith("__"):
                anchors = pages[target].anchors
                assert urllib.parse.unquote(parts.fragment) in anchors, f"{path}: {link}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name, small, and the model that they have finetuned before."""
    folder = tmp_path_factory.mktemp("blocks")
    table = pd.read_csv(FREESOLV).head(NUM_ROWS)
    table.to_csv(folder / "freesolv.csv", index=False)
    values = table["hydration_free_energy"]
    days = pd.date_range("2024-01-01", periods=len(table)).astype(str)
    columns: dict[str, Any] = {"smiles": table["smiles"], "pIC50": 6 + values / 10, "date": days}
    columns["active"] = (values < values.median()).astype(int)
    measurements = pd.DataFrame(columns)
    measurements.to_csv(folder / "measurements.csv", index=False)
    cells = [">10000" if row % 9 == 0 else str(3.0 + 40 * row) for row in range(NUM_ROWS)]
    assay = measurements[["smiles"]].assign(IC50=cells, confidence=1.0)
    assay.to_csv(folder / "assay.csv", index=False)
    endpoints = measurements[["smiles"]].assign(
        logD=values, solubility=values.where(values < -2), clearance=-values
    )
    endpoints.to_csv(folder / "endpoints.csv", index=False)
    library = pd.read_csv(FREESOLV)[["smiles"]].tail(NUM_LIBRARY).assign(id=range(NUM_LIBRARY))
    library.to_csv(folder / "library.csv", index=False)
    numbers = np.arange(NUM_LIBRARY) % 7.0
    assays = pd.DataFrame({"smiles": library["smiles"], "assay": "hERG", "value": numbers})
    assays.to_parquet(folder / "assays.parquet")
    write_sdf_files(folder, measurements)
    write_files_of_others(folder, measurements)
    torch.manual_seed(0)
    config = RMatConfig.from_pretrained(
        rmat_hf.checkpoint_path("rmat-small"),
        id2label={0: "pIC50"},
        problem_type="regression",
        label_mean=[6.0],
        label_std=[1.0],
    )
    for name in ("pic50", "quickstart"):
        RMatForSequenceClassification(config).save_pretrained(folder / "runs" / name)
        RMatProcessor(geometry="bounds").save_pretrained(folder / "runs" / name)
    return folder


def write_files_of_others(folder: Path, measurements: pd.DataFrame) -> None:
    """Predictions of another tool, molecules of two vendors, and weights as the authors publish."""
    predictions = measurements[["smiles"]].assign(prediction=measurements["pIC50"] + 0.1)
    predictions.to_csv(folder / "chemprop.csv", index=False)
    (folder / "vendors").mkdir()
    for name, smiles in (("one", "CCO"), ("two", "c1ccccc1")):
        with gzip.open(folder / "vendors" / f"{name}.smi.gz", "wt") as file:
            file.write(f"{smiles} {name}\n")
    golden = REPO_ROOT / "tests" / "golden" / "reference" / "grover_pool"
    weights = load_file(golden / "reference_state_dict.safetensors")
    encoder = {name: it for name, it in weights.items() if not name.startswith("generator.")}
    torch.save(encoder, folder / "rmat_4M.pt")
    shutil.copy(golden / "reference_config.json", folder / "rmat_4M.json")


def write_sdf_files(folder: Path, measurements: pd.DataFrame) -> None:
    """Poses with a potency, and molecules with a value of every atom."""
    with Chem.SDWriter(str(folder / "poses.sdf")) as poses:
        for row in measurements.itertuples():
            mol = Chem.AddHs(Chem.MolFromSmiles(row.smiles))
            if rdDistGeom.EmbedMolecule(mol, randomSeed=0) == 0:
                mol.SetProp("pIC50", str(row.pIC50))
                poses.write(mol)
    with Chem.SDWriter(str(folder / "charges.sdf")) as charges:
        for smiles in measurements["smiles"]:
            mol = Chem.MolFromSmiles(smiles)
            for atom, (value, _) in zip(mol.GetAtoms(), Crippen._GetAtomContribs(mol), strict=True):
                atom.SetDoubleProp("charge", value)
            Chem.CreateAtomDoublePropertyList(mol, "charge")
            charges.write(mol)


@pytest.fixture
def short_trainings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every training is of one epoch: whether a block runs is the question, not what it learns."""
    train = Trainer.train

    def train_one_epoch(self: Trainer, *args: Any, **options: Any) -> Any:
        self.args.num_train_epochs = 1
        return train(self, *args, **options)

    monkeypatch.setattr(Trainer, "train", train_one_epoch)
    yield


def test_a_block_that_is_not_run_has_a_reason_that_counts() -> None:
    marks = [mark for page in PAGES for mark, *_ in BLOCK.findall(page.read_text(encoding="utf-8"))]
    left_out = [mark.removeprefix(NOT_RUN) for mark in marks if mark.startswith(NOT_RUN)]
    assert len(marks) > 4 * len(left_out) and set(left_out) <= REASONS


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(
    page: Path,
    prepared: Path,
    short_trainings: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = page.read_text(encoding="utf-8")
    blocks = [
        (language, text)
        for mark, language, text in BLOCK.findall(whole)
        if not mark.startswith(NOT_RUN)
    ]
    if not blocks:
        pytest.skip("has no block that runs")
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    for run in (tmp_path / "runs").iterdir():
        if f"--output-dir runs/{run.name}\n" in whole:  # the page finetunes it itself
            shutil.rmtree(run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict[str, Any] = {"__name__": "__main__", "np": np}
    for language, text in blocks:
        if language == "python":
            exec(compile(text, str(page), "exec"), names)
        else:
            run_shell_block(text, monkeypatch)


def run_shell_block(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `rmat` lines in this process; other commands have to be marked as not run."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "rmat", f"{line!r} needs <!-- not run: reason --> before its block"
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, line
