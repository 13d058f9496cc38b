"""R-MAT, the Relative Molecule Attention Transformer, for the Hugging Face ecosystem.

Importing this package registers configuration, models and processor with the Auto classes.
"""

__version__ = "0.1.0"

from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.feature_extraction_auto import AutoFeatureExtractor
from transformers.models.auto.modeling_auto import (
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)
from transformers.models.auto.processing_auto import AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from rmat_hf.inference.conversion import convert_checkpoint
from rmat_hf.inference.prediction import embed, predict
from rmat_hf.loading import checkpoint_path, list_checkpoints
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.ensemble_rmat import RMatEnsembleConfig, RMatEnsembleForSequenceClassification
from rmat_hf.model.modeling_rmat import (
    RMatForPreTraining,
    RMatForSequenceClassification,
    RMatModel,
)
from rmat_hf.model.pipeline_rmat import (
    RMatFeatureExtractionPipeline,
    RMatPropertyPredictionPipeline,
)
from rmat_hf.model.processing_rmat import RMatProcessor

__all__ = [
    "RMatConfig",
    "RMatEnsembleConfig",
    "RMatEnsembleForSequenceClassification",
    "RMatFeatureExtractionPipeline",
    "RMatForPreTraining",
    "RMatForSequenceClassification",
    "RMatModel",
    "RMatProcessor",
    "RMatPropertyPredictionPipeline",
    "checkpoint_path",
    "convert_checkpoint",
    "embed",
    "list_checkpoints",
    "predict",
]

RMatConfig.register_for_auto_class()
RMatModel.register_for_auto_class("AutoModel")
RMatForPreTraining.register_for_auto_class("AutoModelForPreTraining")
RMatForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
RMatProcessor.register_for_auto_class("AutoProcessor")
AutoConfig.register("rmat", RMatConfig)
AutoModel.register(RMatConfig, RMatModel)
AutoModelForPreTraining.register(RMatConfig, RMatForPreTraining)
AutoModelForSequenceClassification.register(RMatConfig, RMatForSequenceClassification)
AutoProcessor.register(RMatConfig, RMatProcessor)
AutoFeatureExtractor.register(RMatConfig, RMatProcessor)
RMatEnsembleConfig.register_for_auto_class()
RMatEnsembleForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
AutoConfig.register("rmat_ensemble", RMatEnsembleConfig)
AutoModelForSequenceClassification.register(
    RMatEnsembleConfig, RMatEnsembleForSequenceClassification
)
AutoProcessor.register(RMatEnsembleConfig, RMatProcessor)
AutoFeatureExtractor.register(RMatEnsembleConfig, RMatProcessor)
for _pipeline_class in (RMatPropertyPredictionPipeline, RMatFeatureExtractionPipeline):
    PIPELINE_REGISTRY.register_pipeline(
        _pipeline_class.task_name,
        pipeline_class=_pipeline_class,
        pt_model=_pipeline_class.auto_class,
    )
