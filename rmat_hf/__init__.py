"""R-MAT, the Relative Molecule Attention Transformer, for the Hugging Face ecosystem.

After the import of this package the Auto classes and pipelines of transformers know R-MAT. Names
are imported when they are asked for, and transformers and torch with them.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rmat_hf.inference.conversion import convert_checkpoint as convert_checkpoint
    from rmat_hf.inference.prediction import embed as embed
    from rmat_hf.inference.prediction import predict as predict
    from rmat_hf.loading import checkpoint_path as checkpoint_path
    from rmat_hf.loading import list_checkpoints as list_checkpoints
    from rmat_hf.model.configuration_rmat import RMatConfig as RMatConfig
    from rmat_hf.model.ensemble_rmat import RMatEnsembleConfig as RMatEnsembleConfig
    from rmat_hf.model.ensemble_rmat import (
        RMatEnsembleForSequenceClassification as RMatEnsembleForSequenceClassification,
    )
    from rmat_hf.model.modeling_rmat import RMatForPreTraining as RMatForPreTraining
    from rmat_hf.model.modeling_rmat import (
        RMatForSequenceClassification as RMatForSequenceClassification,
    )
    from rmat_hf.model.modeling_rmat import RMatModel as RMatModel
    from rmat_hf.model.pipeline_rmat import (
        RMatFeatureExtractionPipeline as RMatFeatureExtractionPipeline,
    )
    from rmat_hf.model.pipeline_rmat import (
        RMatPropertyPredictionPipeline as RMatPropertyPredictionPipeline,
    )
    from rmat_hf.model.processing_rmat import RMatProcessor as RMatProcessor

# public name → where it is defined
_PLACES = {
    "RMatConfig": "model.configuration_rmat",
    "RMatEnsembleConfig": "model.ensemble_rmat",
    "RMatEnsembleForSequenceClassification": "model.ensemble_rmat",
    "RMatFeatureExtractionPipeline": "model.pipeline_rmat",
    "RMatForPreTraining": "model.modeling_rmat",
    "RMatForSequenceClassification": "model.modeling_rmat",
    "RMatModel": "model.modeling_rmat",
    "RMatProcessor": "model.processing_rmat",
    "RMatPropertyPredictionPipeline": "model.pipeline_rmat",
    "checkpoint_path": "loading",
    "convert_checkpoint": "inference.conversion",
    "embed": "inference.prediction",
    "list_checkpoints": "loading",
    "predict": "inference.prediction",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def _register_configs(auto: Any) -> None:
    for name in ("RMatConfig", "RMatEnsembleConfig"):
        config_class = __getattr__(name)
        auto.AutoConfig.register(config_class.model_type, config_class)


def _register_models(auto: Any) -> None:
    for name in ("RMatModel", "RMatForPreTraining", "RMatForSequenceClassification"):
        model_class = __getattr__(name)
        getattr(auto, model_class._auto_class).register(__getattr__("RMatConfig"), model_class)
    model_class = __getattr__("RMatEnsembleForSequenceClassification")
    auto_class = getattr(auto, model_class._auto_class)
    auto_class.register(__getattr__("RMatEnsembleConfig"), model_class)


def _register_processors(auto: Any) -> None:
    auto_class = getattr(auto, "AutoProcessor", None) or auto.AutoFeatureExtractor
    for name in ("RMatConfig", "RMatEnsembleConfig"):
        auto_class.register(__getattr__(name), __getattr__("RMatProcessor"))


def _register_pipelines(pipelines: Any) -> None:
    for name in ("RMatPropertyPredictionPipeline", "RMatFeatureExtractionPipeline"):
        pipeline = __getattr__(name)
        pipelines.PIPELINE_REGISTRY.register_pipeline(
            pipeline.task_name, pipeline_class=pipeline, pt_model=pipeline.auto_class
        )


_REGISTRATIONS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.feature_extraction_auto": _register_processors,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.processing_auto": _register_processors,
    "transformers.pipelines": _register_pipelines,
}


class _Registrar(MetaPathFinder):
    """Registers R-MAT with a module of transformers when somebody imports that, and not before.

    The Auto classes take seconds to import, which `rmat --help` does not have. A registration
    waits for the end of the outermost import, since transformers' modules import each other.
    """

    depth = 0
    waiting: list[str] = []

    def find_spec(  # noqa: PLR0917 - Python calls it by position
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own spec, with the registration after its execution."""
        if not fullname.startswith(("transformers.", f"{__name__}.")):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                self.depth += 1
                try:
                    execute(module)
                finally:
                    self.depth -= 1
                self.register(fullname)

            loader.exec_module = execute_and_register
        return spec

    def register(self, *names: str) -> None:
        """Register with modules that have been imported, or note them down for later."""
        self.waiting += [name for name in names if name in _REGISTRATIONS]
        while self.waiting and self.depth == 0:
            name = self.waiting.pop(0)
            _REGISTRATIONS[name](sys.modules[name])


_registrar = _Registrar()
sys.meta_path.insert(0, _registrar)
_registrar.register(*(_REGISTRATIONS.keys() & sys.modules.keys()))
