"""A Hub that dies, refuses or hangs in the middle of a download or an upload."""

import json
from pathlib import Path
from typing import Any

import pytest
from processes import run_python
from tiny import TINY_ARCHITECTURE

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor

SCRIPT = Path(__file__).resolve().parent / "hub_sufferer.py"
RATE_LIMITS = ["429", "429 after 0"]
FAULTS = ["dies", "silent", "too short", "403", *RATE_LIMITS]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the verbs say of each fault, and what they do when it is over."""
    folder = tmp_path_factory.mktemp("faults")
    config = RMatConfig(**TINY_ARCHITECTURE, num_labels=1, problem_type="regression")
    RMatForSequenceClassification(config).save_pretrained(folder / "model")
    RMatProcessor(geometry="bounds").save_pretrained(folder / "model")
    done = run_python([SCRIPT, folder / "model", folder, *FAULTS], folder=folder, timeout_s=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("what", ["predict", "parquet", "finetune"])
def test_a_broken_download_is_one_line_and_the_repeat_works(
    report: list[dict[str, Any]], fault: str, what: str
) -> None:
    (entry,) = [entry for entry in report if (entry["fault"], entry["what"]) == (fault, what)]
    code, text, seconds = entry["broken"]
    lines = [line for line in text.splitlines() if line.startswith("rmat: error: ")]
    assert code == 2, text
    assert len(lines) == 1
    assert text.endswith(lines[0] + "\n")
    assert not entry["broken_output"]
    assert seconds < 120
    if fault in RATE_LIMITS:
        assert "(HTTP 429)" in lines[0]
        assert "Wait a few minutes and repeat the command" in lines[0]
    code, text, _ = entry["repaired"]
    assert code == 0, text
    assert entry["repaired_output"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_upload_is_an_error_and_the_repeat_works(
    report: list[dict[str, Any]], fault: str
) -> None:
    (entry,) = [entry for entry in report if (entry["fault"], entry["what"]) == (fault, "push")]
    assert entry["broken"][0] != 0, entry
    assert entry["repaired"][0] == 0, entry
