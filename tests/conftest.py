"""Fixtures and settings shared by all tests."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny import TINY_ARCHITECTURE, TINY_SMILES

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatModel
from rmat_hf.model.processing_rmat import RMatProcessor

# The package in which transformers keeps the code of saved models.
REMOTE_CODE = "transformers_modules"

REPO_ROOT = Path(__file__).resolve().parents[1]

# The same examples on every run; a busy machine is no failure.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, print_blob=True, max_examples=50
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout the tests belong to."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Small files computed by other implementations; see tests/golden/README.md."""
    return REPO_ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Larger data beside the checkout; a test that wants it is skipped where it is missing."""
    path = REPO_ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the data folder ../shared")
    return path


@pytest.fixture(scope="session", autouse=True)
def feature_cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The default feature cache of the tests: the user's own stays as it is."""
    folder = tmp_path_factory.mktemp("feature_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XDG_CACHE_HOME", raising=False)
        patch.setattr("rmat_hf.data.featurization.find_feature_cache_dir", lambda: folder)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def default_remote_code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One folder per test process for the code of saved models: the user's own stays as it is."""
    folder = tmp_path_factory.mktemp("hf_modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
        yield


@pytest.fixture
def remote_code_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new folder for the code of saved models, which no other test has filled."""
    folder = tmp_path / "hf_modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
    # Python would look for new code where it found that of another test
    for name in list_remote_modules():
        monkeypatch.delitem(sys.modules, name)
    others = [path for path in sys.path if not (Path(path) / REMOTE_CODE).is_dir()]
    monkeypatch.setattr(sys, "path", others)
    importlib.invalidate_caches()
    yield folder
    # and the next test's where it found this one's
    for name in list_remote_modules():
        del sys.modules[name]


def list_remote_modules() -> list[str]:
    """The loaded modules that belong to the code of saved models."""
    return [name for name in sys.modules if name.split(".")[0] == REMOTE_CODE]


@pytest.fixture
def tiny_config() -> RMatConfig:
    """A configuration that runs in milliseconds."""
    return RMatConfig(**TINY_ARCHITECTURE, num_labels=1, problem_type="regression")


@pytest.fixture
def tiny_model(tiny_config: RMatConfig) -> RMatForSequenceClassification:
    """A tiny untrained regression model in evaluation mode."""
    torch.manual_seed(0)
    return RMatForSequenceClassification(tiny_config).eval()


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `rmat pretrain` writes it, with an untrained tiny encoder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    RMatModel(RMatConfig(**TINY_ARCHITECTURE)).save_pretrained(folder)
    RMatProcessor(geometry="bounds").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def processor() -> RMatProcessor:
    """The default processor with the cheapest geometry."""
    return RMatProcessor(geometry="bounds")


@pytest.fixture
def tiny_batch(processor: RMatProcessor) -> dict[str, torch.Tensor]:
    """Six molecules of different sizes, one of them a salt, one a single atom."""
    return dict(processor(TINY_SMILES, return_tensors="pt"))


@pytest.fixture
def tiny_model_folder(
    tiny_model: RMatForSequenceClassification, processor: RMatProcessor, tmp_path: Path
) -> Path:
    """A folder as `rmat finetune` writes it, with an untrained tiny model."""
    folder = tmp_path / "tiny_model"
    tiny_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
