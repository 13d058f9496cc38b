"""The pretrained model in the package knows what it was taught, on molecules it has never seen."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import RidgeCV
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor

import rmat_hf
from rmat_hf import checkpoint_path, embed
from rmat_hf.data.stored_features import pack_features
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.finetuning import run_finetuning
from rmat_hf.training.objectives import load_objectives
from rmat_hf.training.pretraining_trainer import PretrainingBatch, RMatDataCollatorForPreTraining

NAME = "rmat-small"
MAX_BYTES = 20_000_000


@pytest.fixture(scope="module")
def freesolv() -> pd.DataFrame:
    """Molecules that were taken out of the corpus of the pretraining."""
    return pd.read_csv(Path(rmat_hf.__file__).parent / "data" / "freesolv" / "freesolv.csv")


def test_it_is_small_and_holds_no_code_no_pickle_and_no_path_of_a_machine() -> None:
    files = [path for path in checkpoint_path(NAME).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    assert {path.suffix for path in files} == {".json", ".md", ".png", ".safetensors"}
    for text in (path.read_text(encoding="utf-8") for path in files if path.suffix == ".json"):
        assert not any(root in text for root in ("/home/", "/root/", "/work/", "/tmp/"))


def test_the_auto_classes_load_it() -> None:
    path = checkpoint_path(NAME)
    encoder, info = AutoModel.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"]
    _, info = AutoModelForPreTraining.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(path)
    assert processor.molecule_descriptors is None
    assert (
        encoder.config.num_atom_contexts
        == load_objectives(path)["contexts"].describe_head()["size"]
    )


def test_its_vectors_tell_molecules_apart(freesolv: pd.DataFrame) -> None:
    vectors = embed(NAME, freesolv["smiles"][:64].tolist()).values
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(3), axis=0)) == len(vectors)


def test_it_solves_both_tasks_on_molecules_it_has_never_seen(freesolv: pd.DataFrame) -> None:
    collator = RMatDataCollatorForPreTraining.from_pretrained(NAME)
    smiles = freesolv["smiles"][::5]
    packed = [pack_features(collator.processor.featurize_compactly(text)) for text in smiles]
    batch = collator([PretrainingBatch(0, packed)])
    model = AutoModelForPreTraining.from_pretrained(checkpoint_path(NAME)).eval()
    with torch.no_grad():
        logits = model(**batch).logits
    report = {}
    for objective in collator.objectives.values():
        labels = batch[f"{objective.head}_labels"]
        sums = objective.compute_sums(logits[objective.head], labels=labels)
        report |= objective.compute_metrics(sums)
    # much smaller molecules than those of the corpus; guessing the most frequent context gives .2
    assert report["context_accuracy"] > 0.8
    assert report["descriptor_r2_median"] > 0.5


def test_frozen_vectors_predict_a_property(freesolv: pd.DataFrame) -> None:
    vectors = embed(NAME, freesolv["smiles"].tolist()).values
    rows = {part: (freesolv["split_0"] == part).to_numpy() for part in ("train", "test")}
    labels = freesolv["hydration_free_energy"].to_numpy()
    mean, std = vectors[rows["train"]].mean(axis=0), vectors[rows["train"]].std(axis=0) + 1e-6
    scaled = (vectors - mean) / std
    ridge = RidgeCV(np.logspace(0, 4, 9)).fit(scaled[rows["train"]], labels[rows["train"]])
    errors = ridge.predict(scaled[rows["test"]]) - labels[rows["test"]]
    # a constant gives 3.8 kcal/mol
    assert np.sqrt((errors**2).mean()) < 2.0


@pytest.mark.slow
def test_finetuning_starts_ahead_of_random_weights(tmp_path: Path) -> None:
    errors = {}
    for model in (NAME, "scratch"):
        arguments = FinetuningArguments(
            dataset="freesolv",
            label_columns=["hydration_free_energy"],
            split="column",
            split_column="split_0",
            model=model,
            geometry="bounds",
            num_train_epochs=10,
            output_dir=str(tmp_path / model),
        )
        errors[model] = run_finetuning(arguments).metrics["valid"]["rmse"]
    assert errors[NAME] < 0.85 * errors["scratch"]
