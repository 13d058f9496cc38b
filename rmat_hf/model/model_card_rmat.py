"""The model card that every saved model has, unless somebody wrote another."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, create_repo, file_exists

from .configuration_rmat import RMatConfig

CARD_FILE = "README.md"
TAGS = ["rmat", "chemistry", "molecules"]
# What the Hub calls a license that nobody stated.
UNKNOWN_LICENSE = "unknown"

PROBLEM_NAMES = {
    "regression": "regression",
    "multi_label_classification": "classification, one probability per label",
    "single_label_classification": "classification, one class per molecule",
}


def build_card_metadata(
    *,
    tags: list[str] | None = None,
    license_name: str | None = None,
    datasets: str | None = None,
    base_model: str | None = None,
    model_name: str | None = None,
    eval_results: list[EvalResult] | None = None,
) -> ModelCardData:
    """Return the metadata block of a card.

    Args:
        tags (`list[str]`, *optional*): Beside those of every R-MAT model.
        license_name (`str`, *optional*): Identifier as on the Hub, for example `"cc-by-4.0"`.
        datasets (`str`, *optional*): Hub id of the data.
        base_model (`str`, *optional*): Hub id of the model that was finetuned.
        model_name (`str`, *optional*): Needed with `eval_results`.
        eval_results (`list[EvalResult]`, *optional*): Metrics.
    """
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="graph-ml",
        license=license_name or UNKNOWN_LICENSE,
        tags=[*TAGS, *(tags or [])],
        datasets=datasets,
        base_model=base_model,
        model_name=model_name,
        eval_results=eval_results,
    )


def describe_labels(config: RMatConfig) -> list[str]:
    """Return the name of every label, with its unit if it has one."""
    units = config.label_units or [""] * len(config.label_columns)
    return [
        f"{name} ({unit})" if unit else name
        for name, unit in zip(config.label_columns, units, strict=True)
    ]


def build_usage(model_id: str) -> str:
    """Return the two lines of Python that use a model."""
    return (
        "```python\nfrom transformers import pipeline\n"
        f'pipeline(model="{model_id}", trust_remote_code=True)(["CCO", "c1ccccc1"])\n```'
    )


def describe_limits(max_atoms: int | None = None) -> str:
    """Return the limits of every R-MAT model, with the processor's `max_atoms` if it is known."""
    largest = "256 unless set" if max_atoms is None else f"here {max_atoms}"
    return (
        "- Heavy atoms only, no stereo feature: enantiomers differ only through the conformer.\n"
        f"- Molecules with more heavy atoms than the processor's `max_atoms` ({largest}) are "
        "refused."
    )


def build_model_card(config: RMatConfig, *, model_class: str, model_id: str) -> ModelCard:
    """Return a card that tells what can be told from the configuration alone.

    Args:
        config (`RMatConfig`): Configuration of the model.
        model_class (`str`): Name of the model's class.
        model_id (`str`): Hub id or folder name for the usage snippet.
    """
    # CODEPATH: finetuned models, whose labels have names; every other model gives vectors.
    if model_class.endswith("ForSequenceClassification"):
        problem = PROBLEM_NAMES.get(str(config.problem_type), "unknown kind of labels")
        purpose = f"Predicts: {', '.join(describe_labels(config))} ({problem})."
    else:
        purpose = "Gives one vector per molecule, and can be finetuned."
    sections = [
        f"---\n{build_card_metadata().to_yaml()}\n---",
        "# R-MAT",
        f"A Relative Molecule Attention Transformer (arXiv 2110.05841). {purpose}",
        "## Use",
        build_usage(model_id),
        "## Limits",
        describe_limits()
        + "\n- Nobody has written down data, metrics and license of this model yet.",
    ]
    return ModelCard("\n\n".join(sections) + "\n")


def save_missing_card(folder: Path, config: RMatConfig, *, model_class: str) -> None:
    """Write the card into a folder that has none."""
    if not (folder / CARD_FILE).exists():
        card = build_model_card(config, model_class=model_class, model_id="path/to/this/folder")
        card.save(folder / CARD_FILE)


def push_missing_card(
    repo_id: str, config: RMatConfig, *, model_class: str, **hub_options: Any
) -> None:
    """Push the card to a repository that has none, which is made if need be.

    transformers would push a template without a word about the model.

    Args:
        repo_id (`str`): Hub id.
        config (`RMatConfig`): Configuration of the model.
        model_class (`str`): Name of the model's class.
        hub_options: `private` and `token`, as in [`PreTrainedModel.push_to_hub`].
    """
    token = hub_options.get("token")
    private = hub_options.get("private")
    repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    if not file_exists(repo_id, CARD_FILE, token=token):
        card = build_model_card(config, model_class=model_class, model_id=repo_id)
        card.push_to_hub(repo_id, token=token)


__all__ = ["build_model_card", "push_missing_card", "save_missing_card"]
