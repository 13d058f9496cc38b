"""What somebody who knows only the Hub ids does, without this package. Run as a script."""

import json
import sys
from pathlib import Path
from typing import Any

from datasets import load_dataset
from hub_server import DATA, MODEL, PARTS, PRIVATE
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from outsider import run_pipeline, try_import
from transformers import AutoModelForSequenceClassification, AutoProcessor, pipeline


def describe_failure(repo_id: str, **options: Any) -> str:
    """Return what a user reads who opens a repository that is not there for him."""
    try:
        AutoModelForSequenceClassification.from_pretrained(
            repo_id, trust_remote_code=True, **options
        )
    except (OSError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    """Open everything that is public and report what came."""
    pinned = pipeline(model=MODEL, revision="v1", trust_remote_code=True)
    latest = pipeline(model=MODEL, trust_remote_code=True)
    parts = pipeline(model=PARTS, trust_remote_code=True)
    latest.save_pretrained(folder / "from_pipeline")
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, trust_remote_code=True)
    model.save_pretrained(folder / "from_parts")
    processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=True)
    processor.save_pretrained(folder / "from_parts")
    report = {
        "import_error": try_import("rmat_hf"),
        "pinned": run_pipeline(pinned),
        "latest": run_pipeline(latest),
        "parts": parts(["CCO"])[0],
        "parts_options": parts.feature_extractor.to_dict(),
        "streamed": list(load_dataset(DATA, split="train", streaming=True)),
        "private": describe_failure(PRIVATE),
        "unknown_revision": describe_failure(MODEL, revision="v9"),
    }
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
