"""R-MAT, the Relative Molecule Attention Transformer, for the Hugging Face ecosystem.

After the import of this package the Auto classes and pipelines of transformers know R-MAT.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "RMatAtomPropertyPredictionPipeline",
    "RMatConfig",
    "RMatEnsembleConfig",
    "RMatEnsembleForSequenceClassification",
    "RMatFeatureExtractionPipeline",
    "RMatForPreTraining",
    "RMatForSequenceClassification",
    "RMatForTokenClassification",
    "RMatModel",
    "RMatProcessor",
    "RMatPropertyPredictionPipeline",
    "checkpoint_path",
    "convert_checkpoint",
    "embed",
    "list_checkpoints",
    "predict",
    "push_folder",
]

if TYPE_CHECKING:
    from rmat_hf.inference.conversion import convert_checkpoint
    from rmat_hf.inference.prediction import embed, predict
    from rmat_hf.inference.sharing import push_folder
    from rmat_hf.loading import checkpoint_path, list_checkpoints

# what needs more than the registration below is imported when somebody asks for it
_PLACES = {
    "checkpoint_path": "rmat_hf.loading",
    "convert_checkpoint": "rmat_hf.inference.conversion",
    "embed": "rmat_hf.inference.prediction",
    "list_checkpoints": "rmat_hf.loading",
    "predict": "rmat_hf.inference.prediction",
    "push_folder": "rmat_hf.inference.sharing",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


# the command `rmat` has no use for Auto classes, and answers --help before torch is there
if Path(sys.argv[0]).name not in ("rmat", "rmat.exe"):
    from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor
    from transformers.models.auto import modeling_auto
    from transformers.pipelines import PIPELINE_REGISTRY

    from rmat_hf.model.configuration_rmat import RMatConfig, RMatEnsembleConfig
    from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
    from rmat_hf.model.modeling_rmat import (
        RMatForPreTraining,
        RMatForSequenceClassification,
        RMatForTokenClassification,
        RMatModel,
    )
    from rmat_hf.model.pipeline_rmat import (
        RMatAtomPropertyPredictionPipeline,
        RMatFeatureExtractionPipeline,
        RMatPropertyPredictionPipeline,
    )
    from rmat_hf.model.processing_rmat import RMatProcessor

    for _config in (RMatConfig, RMatEnsembleConfig):
        AutoConfig.register(_config.model_type, _config)
        AutoProcessor.register(_config, RMatProcessor)
        AutoFeatureExtractor.register(_config, RMatProcessor)
    for _model in (
        RMatModel,
        RMatForPreTraining,
        RMatForSequenceClassification,
        RMatForTokenClassification,
        RMatEnsembleForSequenceClassification,
    ):
        getattr(modeling_auto, _model._auto_class).register(_model.config_class, _model)
    for _pipeline in (
        RMatPropertyPredictionPipeline,
        RMatAtomPropertyPredictionPipeline,
        RMatFeatureExtractionPipeline,
    ):
        PIPELINE_REGISTRY.register_pipeline(
            _pipeline.task_name, pipeline_class=_pipeline, pt_model=_pipeline.auto_class
        )
