"""What a stranger without this package does with a pushed model. Run as a script.

    python hub_guest.py REPORT REPOSITORY PRETRAINED

The first repository is of a finetuned model, the second of a pretrained one.
"""

import json
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, snapshot_download
from outsider import try_import
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor, pipeline

MOLECULES = ["CCN", "C1CC", "CCOC"]


def main(report_file: str, repo_id: str, pretrained_id: str) -> None:
    """Use both repositories as their cards and the Hub's endpoints do, and report what came."""
    import_error = try_import("rmat_hf")
    folder = snapshot_download(repo_id)
    sys.path.insert(0, folder)
    from handler import EndpointHandler  # of the repository

    processor = AutoProcessor.from_pretrained(pretrained_id, trust_remote_code=True)
    batch = processor(MOLECULES[:1], return_tensors="pt")
    report: dict[str, Any] = {
        "import_error": import_error,
        "folder": folder,
        "pretrained_folder": snapshot_download(pretrained_id),
        "card": ModelCard.load(repo_id).data.to_dict(),
        "pipeline": pipeline(model=repo_id, trust_remote_code=True)(MOLECULES),
        "endpoint": EndpointHandler(folder)({"inputs": MOLECULES}),
        "vectors": pipeline(model=pretrained_id, trust_remote_code=True)(MOLECULES),
    }
    for auto_class in (AutoModel, AutoModelForPreTraining):
        model, info = auto_class.from_pretrained(
            pretrained_id, trust_remote_code=True, output_loading_info=True
        )
        model(**batch)
        report[auto_class.__name__] = [type(model).__name__, sorted(info["missing_keys"])]
    Path(report_file).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
