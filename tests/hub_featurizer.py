"""Features on the Hub: pushed once, trained on from there. Run as a script, with a folder."""

import json
import sys
from pathlib import Path

from datasets import Dataset, load_dataset
from hub_server import USER

from rmat_hf import (
    RMatProcessor,
    checkpoint_path,
    featurize_dataset,
    find_processor,
    finetune,
    pretrain,
)
from rmat_hf.data import freesolv

FEATURES = f"{USER}/freesolv-features"


def main(folder: Path) -> None:
    """Push the features of FreeSolv; finetune from the table and from the Hub, and pretrain."""
    file = Path(freesolv.__path__[0]) / "freesolv.csv"
    processor = RMatProcessor.from_pretrained(checkpoint_path("rmat-small"))
    featurize_dataset(Dataset.from_csv(str(file)), processor).push_to_hub(FEATURES)
    stream = load_dataset(FEATURES, split="train", streaming=True)
    sources = {"table": str(file), "stream": stream, "hub": FEATURES}
    for name, source in sources.items():
        finetune(
            source,
            label_columns=["hydration_free_energy"],
            output_dir=folder / name,
            split="column",
            split_column="split_0",
            num_train_epochs=1,
            feature_cache="none",
        )
    options = {"objective": "contexts", "streaming": True, "max_steps": 2}
    result = pretrain(FEATURES, output_dir=folder / "pretrained", **options)
    report = {
        "processor": find_processor(stream).to_dict(),
        "expected": processor.to_dict(),
        "row": next(iter(stream)),
        "pretraining": result.metrics,
    }
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
