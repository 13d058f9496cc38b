"""The flags of `rmat benchmark`."""

from dataclasses import dataclass

from rmat_hf.flags import (
    declare_flag,
    declare_required,
    validate_flags,
)
from rmat_hf.training.arguments import DEFAULT_CACHE


@dataclass(kw_only=True)
class EvaluationArguments:
    """Everything `run_accuracy_benchmark` needs to know; each field is a flag."""

    data: str = declare_required("Folder with the tables that the protocol names.")
    protocol: str = declare_required("JSON file: data sets, models, baselines, other tools.")
    output_dir: str = declare_required(
        "Folder to write; what was computed there before is not computed again."
    )
    num_proc: int = declare_flag(
        1, "Runs at a time, each a process of one thread; 0 runs them in this process.", least=0
    )
    num_resamples: int = declare_flag(
        1000,
        "Bootstrap resamples of the test rows behind the standard error of a ROC AUC.",
        least=2,
    )
    feature_cache: str | None = declare_flag(
        DEFAULT_CACHE,
        "Folder that keeps features for later runs: 'default' is ~/.cache/rmat-hf/features, "
        "'none' keeps nothing.",
    )

    def __post_init__(self) -> None:
        """Raise a `ValueError` for a number that is too small."""
        validate_flags(self)
