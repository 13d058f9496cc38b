"""What pretraining can learn, how objectives are combined, and the file that keeps their states."""

import math
from collections.abc import Mapping
from pathlib import Path

from transformers.utils.hub import cached_file

from rmat_hf.errors import UserError, explained_reading
from rmat_hf.loading import find_checkpoint
from rmat_hf.output_folder import load_json, save_json
from rmat_hf.training.objectives.assays import AssayObjective
from rmat_hf.training.objectives.atoms import AtomObjective
from rmat_hf.training.objectives.contexts import ContextObjective
from rmat_hf.training.objectives.counts import CountObjective
from rmat_hf.training.objectives.descriptors import DescriptorObjective
from rmat_hf.training.objectives.objective import Objective

TARGETS_FILE = "pretraining_targets.json"

OBJECTIVES: dict[str, type[Objective]] = {
    "contexts": ContextObjective,
    "descriptors": DescriptorObjective,
    "counts": CountObjective,
    "assays": AssayObjective,
    "atoms": AtomObjective,
}

# Names of mixes: the stages of a run one after the other, each with the objectives that it learns
# at once.
STAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "joint": {"joint": ("contexts", "descriptors")},
    # the two steps of the publication
    "sequential": {"contexts": ("contexts",), "descriptors": ("descriptors",)},
}


def parse_objective(text: str) -> dict[str, dict[str, float]]:
    """Return the stages behind `--objective`, each with the weights of what it learns at once."""
    if text in STAGES:
        return {stage: dict.fromkeys(names, 1.0) for stage, names in STAGES[text].items()}
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        known = [*OBJECTIVES, *STAGES]
        if name not in OBJECTIVES or name in weights:
            fault = "is there twice" if name in weights else f"is unknown. Known: {known}"
            raise UserError(f"--objective {name!r} {fault}. Mix them as contexts,descriptors=0.5.")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise UserError(
                f"--objective {part!r}: {weight!r} is no weight. Name a number above 0."
            )
    return {text: weights}


def save_objectives(folder: str | Path, objectives: Mapping[str, Objective]) -> None:
    """Write `pretraining_targets.json`: what the outputs of the heads mean."""
    states = {objective.state_key: objective.state for objective in objectives.values()}
    save_json(Path(folder) / TARGETS_FILE, states, indent=None)


def load_objectives(model: str | Path, *, revision: str | None = None) -> dict[str, Objective]:
    """Return the objectives in the `pretraining_targets.json` of a model, by name."""
    way_out = "Restore the file of rmat pretrain; without it pretraining starts from scratch."
    with explained_reading(
        f"{TARGETS_FILE} of {model}", way_out=way_out, also=(TypeError, AttributeError, KeyError)
    ):
        path = cached_file(find_checkpoint(model), TARGETS_FILE, revision=revision)
        content = load_json(str(path))
        return {
            name: objective(content[objective.state_key])
            for name, objective in OBJECTIVES.items()
            if objective.state_key in content
        }
