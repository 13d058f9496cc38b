"""R-MAT, the Relative Molecule Attention Transformer, for the Hugging Face ecosystem.

After the import of this package the Auto classes and pipelines of transformers know R-MAT.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "ModelCardCallback",
    "RMatAtomPropertyPredictionPipeline",
    "RMatClassifier",
    "RMatConfig",
    "RMatDataCollator",
    "RMatDataCollatorForPreTraining",
    "RMatEnsembleConfig",
    "RMatEnsembleForSequenceClassification",
    "RMatFeatureExtractionPipeline",
    "RMatForPreTraining",
    "RMatForSequenceClassification",
    "RMatForTokenClassification",
    "RMatKernelConfig",
    "RMatKernelForSequenceClassification",
    "RMatModel",
    "RMatProcessor",
    "RMatPropertyPredictionPipeline",
    "RMatRegressor",
    "RMatStackConfig",
    "RMatStackForSequenceClassification",
    "RMatTrainer",
    "RMatTrainingArguments",
    "RMatTransformer",
    "build_compute_metrics",
    "check_table",
    "checkpoint_path",
    "compute_attention_maps",
    "compute_label_scaling",
    "convert_checkpoint",
    "embed",
    "evaluate",
    "explain",
    "export_onnx",
    "featurize_dataset",
    "find_counterfactuals",
    "find_processor",
    "finetune",
    "fit_kernel_head",
    "fit_stack_head",
    "list_checkpoints",
    "load_for_finetuning",
    "predict",
    "pretrain",
    "push_folder",
    "split_dataset",
]

if TYPE_CHECKING:
    from rmat_hf.data.check import check_table
    from rmat_hf.data.featurization import find_processor
    from rmat_hf.data.splits.registry import split_dataset
    from rmat_hf.data.training_table import featurize_dataset
    from rmat_hf.evaluation.model_evaluation import evaluate
    from rmat_hf.inference.attention_maps import compute_attention_maps
    from rmat_hf.inference.conversion import convert_checkpoint
    from rmat_hf.inference.counterfactuals import find_counterfactuals
    from rmat_hf.inference.estimators import RMatClassifier, RMatRegressor, RMatTransformer
    from rmat_hf.inference.explanation import explain
    from rmat_hf.inference.export import export_onnx
    from rmat_hf.inference.prediction import embed, predict
    from rmat_hf.inference.sharing import push_folder
    from rmat_hf.loading import checkpoint_path, list_checkpoints
    from rmat_hf.training.finetuning import finetune
    from rmat_hf.training.kernel_head import fit_kernel_head
    from rmat_hf.training.metrics import build_compute_metrics
    from rmat_hf.training.model_card import ModelCardCallback
    from rmat_hf.training.pretraining import pretrain
    from rmat_hf.training.pretraining_trainer import RMatDataCollatorForPreTraining
    from rmat_hf.training.recipe import (
        RMatTrainingArguments,
        compute_label_scaling,
        load_for_finetuning,
    )
    from rmat_hf.training.stack_head import fit_stack_head
    from rmat_hf.training.trainer import RMatDataCollator, RMatTrainer

# what needs more than the registration below is imported when somebody asks for it
_PLACES = {
    "RMatClassifier": "rmat_hf.inference.estimators",
    "RMatRegressor": "rmat_hf.inference.estimators",
    "RMatTransformer": "rmat_hf.inference.estimators",
    "ModelCardCallback": "rmat_hf.training.model_card",
    "RMatDataCollator": "rmat_hf.training.trainer",
    "RMatDataCollatorForPreTraining": "rmat_hf.training.pretraining_trainer",
    "RMatTrainer": "rmat_hf.training.trainer",
    "RMatTrainingArguments": "rmat_hf.training.recipe",
    "build_compute_metrics": "rmat_hf.training.metrics",
    "check_table": "rmat_hf.data.check",
    "checkpoint_path": "rmat_hf.loading",
    "compute_attention_maps": "rmat_hf.inference.attention_maps",
    "compute_label_scaling": "rmat_hf.training.recipe",
    "convert_checkpoint": "rmat_hf.inference.conversion",
    "embed": "rmat_hf.inference.prediction",
    "explain": "rmat_hf.inference.explanation",
    "evaluate": "rmat_hf.evaluation.model_evaluation",
    "export_onnx": "rmat_hf.inference.export",
    "featurize_dataset": "rmat_hf.data.training_table",
    "find_counterfactuals": "rmat_hf.inference.counterfactuals",
    "find_processor": "rmat_hf.data.featurization",
    "finetune": "rmat_hf.training.finetuning",
    "fit_kernel_head": "rmat_hf.training.kernel_head",
    "fit_stack_head": "rmat_hf.training.stack_head",
    "list_checkpoints": "rmat_hf.loading",
    "load_for_finetuning": "rmat_hf.training.recipe",
    "predict": "rmat_hf.inference.prediction",
    "pretrain": "rmat_hf.training.pretraining",
    "push_folder": "rmat_hf.inference.sharing",
    "split_dataset": "rmat_hf.data.splits.registry",
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

    from rmat_hf.model.configuration_rmat import (
        RMatConfig,
        RMatEnsembleConfig,
        RMatKernelConfig,
        RMatStackConfig,
    )
    from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
    from rmat_hf.model.kernel_rmat import RMatKernelForSequenceClassification
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
    from rmat_hf.model.stack_rmat import RMatStackForSequenceClassification

    for _config in (RMatConfig, RMatEnsembleConfig, RMatKernelConfig, RMatStackConfig):
        AutoConfig.register(_config.model_type, _config)
        AutoProcessor.register(_config, RMatProcessor)
        AutoFeatureExtractor.register(_config, RMatProcessor)
    for _model in (
        RMatModel,
        RMatForPreTraining,
        RMatForSequenceClassification,
        RMatForTokenClassification,
        RMatEnsembleForSequenceClassification,
        RMatKernelForSequenceClassification,
        RMatStackForSequenceClassification,
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
