"""Every name of the package is a page of documentation, whose example runs."""

import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from transformers.trainer_callback import PrinterCallback, ProgressCallback

import rmat_hf

REPO_ROOT = Path(__file__).resolve().parents[1]


def parse_examples(name: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(getattr(rmat_hf, name)) or "")


@pytest.mark.parametrize("name", rmat_hf.__all__)
def test_a_public_name_says_what_it_takes_and_what_goes_wrong(name: str) -> None:
    text = inspect.getdoc(getattr(rmat_hf, name)) or ""
    assert parse_examples(name), f"{name} has no example"
    has_parameters = bool(inspect.signature(getattr(rmat_hf, name)).parameters)
    assert not has_parameters or "Args:" in text, f"{name} has no Args"
    assert "Raises:" in text or not has_parameters, f"{name} does not say what it raises"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(it, marks=pytest.mark.slow) if it == "export_onnx" else it
        for it in rmat_hf.__all__
    ],
)
def test_the_example_of_a_public_name_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Examples may use the public names, as files that travel cannot import them, and a folder."""
    # the losses of a training, which it writes between the results
    for callback in (PrinterCallback, ProgressCallback):
        monkeypatch.setattr(callback, "on_log", lambda *_, **__: None)
    known: dict[str, Any] = {public: getattr(rmat_hf, public) for public in rmat_hf.__all__}
    known |= {"reference": REPO_ROOT / "tests" / "golden" / "reference" / "mean_pool"}
    known |= {"folder": tmp_path, "torch": importlib.import_module("torch")}
    text = inspect.getdoc(getattr(rmat_hf, name)) or ""
    example = doctest.DocTestParser().get_doctest(text, known, name, None, 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False
    )
    result = runner.run(example, out=report.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)


def test_the_documentation_of_a_public_name_is_not_that_of_its_base_class() -> None:
    for name in rmat_hf.__all__:
        public = getattr(rmat_hf, name)
        if inspect.isclass(public):
            assert public.__doc__ and not re.match(r"\w+\(.*\)$", public.__doc__, re.S), name
