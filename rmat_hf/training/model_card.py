"""The cards of finetuned and pretrained models: learned from what, how well, and for what."""

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.trainer_callback import TrainerCallback

from rmat_hf.adapters import is_adapted
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForTokenClassification
from rmat_hf.training.arguments import (
    STACK_WITH_NETWORK,
    STACKS,
    keeps_last_epoch,
    load_json_fields,
    name_source,
    name_split,
)
from rmat_hf.training.estimates import MOST_LABELS, build_table
from rmat_hf.training.metrics import METRICS, Metric, format_metric, list_metrics
from rmat_hf.training.plots import save_figure
from rmat_hf.training.report import (
    REPORT_FILE,
    FinetuningReport,
    describe_labels,
    describe_learned,
    describe_principles,
    describe_summary,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS_PLOT = "loss_curves.png"
CARD_FILE = "README.md"
# What a card says of itself until it is on the Hub.
FOLDER_PLACEHOLDER = "path/to/this/folder"
TAGS = ["rmat", "chemistry", "molecules"]
# What the Hub calls a license that nobody stated.
UNKNOWN_LICENSE = "unknown"

PROBLEM_NAMES = {
    "regression": "regression",
    "multi_label_classification": "classification, one probability per label",
    "single_label_classification": "classification, one class",
}


USE = f"""## Use

```python
from transformers import pipeline
pipeline(model="{FOLDER_PLACEHOLDER}", trust_remote_code=True)(["CCO", "c1ccccc1"])
```

or `rmat predict --model {FOLDER_PLACEHOLDER} --smiles CCO c1ccccc1 --output predictions.csv`. \
On the Hub, its id takes the place of the path."""
USE_ADAPTER = f"""## Use

```python
from rmat_hf import predict  # pip install 'rmat-hf[peft]'
predict("{FOLDER_PLACEHOLDER}", ["CCO", "c1ccccc1"]).values
```

It is an adapter of peft (LoRA) and needs the model that it started from, which \
`adapter_config.json` names, too."""
TRUST = """
- Trust it for molecules like those in the training table; metrics of a random split are \
optimistic for new chemical series.
- Compare metrics only with those of the same kind of split: `scaffold` and `scaffold_balanced`, \
for example, are two."""


class ModelCardCallback(TrainerCallback):
    """Writes the model card of a finetuning, `README.md` in the `output_dir` of a `Trainer`.

    When the training ends it has the validation metrics of the model that is kept; every evaluation
    or prediction after that adds its own, by the prefix of its metrics: those of `"test"` become
    the results that the Hub shows. Metrics are in the units of the labels.

    Args:
        dataset (`str`): Name of the data; of a data set on the Hub its id, which the card links to.
        split (`str`, *optional*): How it was divided, as `"scaffold"`.
        base_model (`str`, *optional*, defaults to `"rmat-small"`): What the training began with.
        license (`str`, *optional*): Of the model, as `"cc-by-4.0"`; by default unknown.

    Raises:
        OSError: The folder cannot be written.

    Example:
    ```python
    >>> from transformers import TrainerControl, TrainerState, TrainingArguments
    >>> from rmat_hf import ModelCardCallback, RMatConfig, RMatForSequenceClassification
    >>> config = RMatConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, num_labels=1)
    >>> model, args = RMatForSequenceClassification(config), TrainingArguments(folder)
    >>> card = ModelCardCallback("measurements", split="scaffold")  # callbacks=[card] of a Trainer
    >>> card.on_train_end(args, TrainerState(), TrainerControl(), model=model)
    >>> metrics = {"test_loss": 0.4, "test_rmse": 0.7}
    >>> card.on_evaluate(args, TrainerState(), TrainerControl(), model=model, metrics=metrics)
    >>> "test (scaffold split)" in (folder / "README.md").read_text()
    True

    ```
    """

    def __init__(
        self,
        dataset: str,
        *,
        split: str = "given",
        base_model: str = "rmat-small",
        license: str | None = None,  # noqa: A002 - the name of the Hub's field
    ) -> None:
        self.facts = {"dataset": name_source(dataset), "base_model": name_source(base_model)}
        self.split = split
        self.license_name = license
        self.metrics: dict[str, dict[str, Any]] = {}
        self._is_trained = False

    def on_train_end(self, args: Any, state: Any, *control: Any, **parts: Any) -> None:
        """Write the card, with the metrics of the step that is kept."""
        self._is_trained = True
        step = state.best_global_step or state.global_step
        for entry in state.log_history:
            if entry.get("step") == step and "eval_loss" in entry:
                self.metrics["valid"] = _strip_prefix(entry, "eval_")
        self._save(args, state, **parts)

    def on_predict(self, args: Any, state: Any, *control: Any, **parts: Any) -> None:
        """Add the metrics of a prediction of the trained model."""
        self.on_evaluate(args, state, *control, **parts)

    def on_evaluate(self, args: Any, state: Any, *control: Any, **parts: Any) -> None:
        """Add the metrics of an evaluation of the trained model."""
        metrics = parts["metrics"]
        if self._is_trained:
            prefix = next((it[:-4] for it in metrics if it.endswith("_loss")), "eval_")
            part = prefix.removesuffix("_")
            self.metrics[{"eval": "valid"}.get(part, part)] = _strip_prefix(metrics, prefix)
            self._save(args, state, **parts)

    def _save(self, args: Any, state: Any, **parts: Any) -> None:
        if state.is_world_process_zero:
            processor = parts.get("processing_class")
            max_atoms = getattr(processor, "max_atoms", "–")
            model = parts["model"]
            is_adapter = is_adapted(model)
            network = model.get_base_model() if is_adapter else model
            is_of_atoms = isinstance(network, RMatForTokenClassification)
            level = "atom" if is_of_atoms else "molecule"
            options: dict[str, Any] = {"max_atoms": max_atoms, "is_adapter": is_adapter}
            self.save(args.output_dir, model.config, level=level, **options)

    def save(
        self,
        folder: str | Path,
        config: RMatConfig,
        *,
        max_atoms: Any,
        level: str = "molecule",
        is_adapter: bool = False,
        facts: Sequence[str] = (),
        metrics_section: str | None = None,
        sections: Sequence[str] = (),
    ) -> None:
        """Write `README.md` with the `metrics`, facts about the training, and what else is given.

        `rmat finetune` calls it with a `metrics_section` of its own and `sections` behind that, in
        Markdown.
        """
        problem_type, dataset = config.problem_type or "regression", self.facts["dataset"]
        started = f"started from: {self.facts['base_model']}"
        lines = [f"data: {dataset}; {self.split} split", started, *facts]
        if metrics_section is None:
            metrics_section = describe_metrics(self.metrics) or "(None were computed.)"
        texts = [
            _describe_model(config, level=level),
            "\n".join(f"- {line}" for line in lines),
            USE_ADAPTER if is_adapter else USE,
            "## Metrics",
            metrics_section,
            *sections,
            _describe_limits(max_atoms) + TRUST,
        ]
        results = build_eval_results(
            self.metrics,
            problem_type=problem_type,
            dataset=dataset,
            split=self.split,
            names=dict(zip(config.label_columns, describe_learned(config), strict=True)),
        )
        _save_card(
            Path(folder),
            texts,
            tag=f"{level}-property-prediction",
            license_name=self.license_name,
            model_name=f"R-MAT {', '.join(config.label_columns)}",
            eval_results=results or None,
            library_name="peft" if is_adapter else "transformers",
            **self.facts,
        )


def _strip_prefix(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    known = {metric.name for metric in METRICS.values()}
    found = {name.removeprefix(prefix): value for name, value in metrics.items()}
    return {name: value for name, value in found.items() if name in known}


def describe_metrics(metrics: dict[str, dict[str, Any]]) -> str:
    """Return a table, in Markdown: one row per part, one column per metric; empty without any."""
    parts = list(metrics)
    names = [name for it in parts[:1] for name in metrics[it] if name != "per_label"]
    rows = [[part, *(format_metric(metrics[part].get(it)) for it in names)] for part in parts]
    return build_table([["part", *names], *rows]) if rows else ""


def save_model_card(
    folder: Path, report: FinetuningReport, *, pictures: Sequence[str] = ()
) -> None:
    """Write `README.md` of a finetuned model into its folder: what it is, and how good."""
    arguments = report.arguments
    card = ModelCardCallback(
        arguments.dataset,
        split=name_split(arguments),
        base_model=arguments.model,
        license=arguments.license,
    )
    card.metrics = report.metrics
    sizes = ", ".join(f"{len(labels)} {part}" for part, labels in report.labels.items())
    facts = [
        f"{report.noun}: {sizes}; {report.num_dropped} rows dropped (`dropped_rows.csv`)",
        *report.notes,
        *_describe_ensemble(report),
        *_describe_choice(report),
        f"errors by novelty and the molecules it is most wrong about: `{REPORT_FILE}`",
        "every value: `metrics.json`, `predictions.csv`, `split.csv`",
    ]
    sections = [*pictures, "## By the OECD principles", describe_principles(report)]
    options: dict[str, Any] = {"facts": facts, "metrics_section": describe_summary(report)}
    options |= {"max_atoms": report.max_atoms, "is_adapter": report.is_adapter}
    card.save(folder, report.config, level=arguments.level, sections=sections, **options)


def build_eval_results(
    metrics: Mapping[str, dict[str, Any]],
    *,
    problem_type: str,
    dataset: str,
    split: str,
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[EvalResult]:
    """Return the `model-index` of a finetuned model: its metrics of the test part.

    Of several labels it has the first metric of each, and of classes the mean of these. `names` are
    those of labels as they are learned.
    """
    return [
        EvalResult(
            task_type="graph-ml",
            task_name="molecule property prediction",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=f"test ({split} split)",
            metric_type=metric.name,
            metric_name=name,
            metric_value=float(format_metric(value, decimals=4)),
        )
        for metric, name, value in _list_results(metrics.get("test", {}), problem_type, names=names)
        if value is not None
    ]


def _list_results(
    metrics: Mapping[str, Any], problem_type: str, *, names: Mapping[str, str]
) -> list[tuple[Metric, str | None, float | None]]:
    """Return metrics with a name of those of one label, or of a mean, and their values."""
    found, known = list_metrics(problem_type), metrics.get("per_label", {})
    if not known:
        return [(it, None, metrics.get(it.name)) for it in found]
    # errors have the units of their label, and no mean
    means = [it for it in found[:1] if it.greater_is_better]
    if len(known) > MOST_LABELS:
        means, known = [it for it in found if it.greater_is_better], {}
    number = len(metrics["per_label"])
    of_labels = [
        (METRICS[next(iter(own))], names.get(label, label), own) for label, own in known.items()
    ]
    return [
        *((it, f"{it.title}, mean of {number} labels", metrics.get(it.name)) for it in means),
        *((it, f"{it.title} of {label}", own[it.name]) for it, label, own in of_labels),
    ]


def build_plain_card(repo_id: str) -> ModelCard:
    """Return the card of a model of which nothing but its place on the Hub is known."""
    data = ModelCardData(library_name="transformers", pipeline_tag="graph-ml", tags=TAGS)
    versions = "".join(f"\nTested with `{it}`.\n" for it in list_requirements("transformers"))
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# {repo_id.split('/')[-1]}\n\n"
        "A Relative Molecule Attention Transformer (arXiv 2110.05841).\n\n"
        "## Use without rmat-hf\n\n"
        "```python\nfrom transformers import pipeline\n\n"
        f'pipe = pipeline(model="{repo_id}", trust_remote_code=True)\n'
        f'pipe(["CCO", "c1ccccc1"], batch_size=2)\n```\n{versions}'
    )


def save_pretraining_card(
    folder: Path,
    task: Any,
    *,
    arguments: Mapping[str, Any],
    reports: Mapping[str, dict[str, Any]],
) -> None:
    """Write `README.md` and the plot of the losses of a pretrained model into its folder."""
    num_molecules = f"{len(task.train):,}" if hasattr(task.train, "__len__") else "a stream of"
    draw = [
        partial(_draw_losses, log=it["log_history"], title=name) for name, it in reports.items()
    ]
    metrics = [
        f"| {stage} | {name} | {_format_cell(value)} |"
        for stage, report in reports.items()
        for name, value in report["metrics"].items()
    ]
    sections = [
        "# Pretrained R-MAT",
        "A Relative Molecule Attention Transformer (arXiv 2110.05841), pretrained with rmat-hf. "
        "Finetune it, or take its vectors: it predicts no property by itself.",
        f"- learned: {', then '.join(reports)}\n"
        f"- corpus: {arguments['corpus']}; {num_molecules} molecules, "
        f"{len(task.valid):,} held out\n"
        f"- distances: geometry {task.processor.geometry!r}\n"
        f"- started from: {arguments['model']}",
        "## Use",
        f"```bash\nrmat finetune --model {FOLDER_PLACEHOLDER} --dataset my.csv --label-columns y "
        f"--output-dir my_model\nrmat embed --model {FOLDER_PLACEHOLDER} --input my.csv "
        "--output vectors.parquet\n```",
        "## On the molecules held out",
        "\n".join(["| stage | metric | value |\n|---|---|---|", *metrics]),
        save_figure(folder / LOSS_PLOT, draw, panel_size=(6.0, 4.2)),
        "## Run",
        f"{_describe_cost(reports)} The arguments of `rmat pretrain`:",
        f"```json\n{json.dumps(arguments, indent=2)}\n```",
        _describe_limits(task.processor.max_atoms),
    ]
    _save_card(
        folder,
        sections,
        tag="pretrained",
        license_name=arguments["license"],
        dataset=arguments["corpus"],
        base_model=arguments["model"],
    )


def _save_card(
    folder: Path,
    sections: Sequence[str],
    *,
    tag: str,
    license_name: str | None,
    dataset: str,
    base_model: str,
    library_name: str = "transformers",
    **fields: Any,
) -> None:
    data = ModelCardData(
        library_name=library_name,
        pipeline_tag="graph-ml",
        license=license_name or UNKNOWN_LICENSE,
        tags=[*TAGS, tag],
        # the metadata of a card link to what they name
        datasets=dataset if "/" in dataset else None,
        base_model=base_model if "/" in base_model else None,
        **fields,
    )
    text = "\n\n".join([f"---\n{data.to_yaml()}\n---", *sections])
    ModelCard(text + "\n").save(folder / CARD_FILE)


def _draw_losses(axes: "Axes", *, log: list[dict[str, Any]], title: str) -> None:
    """Draw the loss of every head on train and valid against the steps."""
    names = {name for row in log for name in row if name.endswith("_loss") and name != "eval_loss"}
    heads = sorted({name.removeprefix("eval_") for name in names} - {"train_loss"})
    for idx, head in enumerate(heads):
        for name, style, part in ((head, "-", "train"), (f"eval_{head}", "o--", "valid")):
            steps = [row["step"] for row in log if name in row]
            losses = [row[name] for row in log if name in row]
            label = f"{head.removesuffix('_loss')}, {part}"
            axes.plot(steps, losses, style, color=f"C{idx}", markersize=3.5, label=label)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=title)
    axes.grid(visible=True, which="both", color="#e4e7eb", linewidth=0.6)


def _describe_model(config: RMatConfig, *, level: str) -> str:
    """Return the title of a finetuned model's card, and what the model predicts."""
    names = ", ".join(describe_labels(config))
    learned = describe_learned(config)
    return (
        f"# R-MAT for {names}\n\n"
        "A Relative Molecule Attention Transformer (arXiv 2110.05841), finetuned with rmat-hf.\n\n"
        f"- predicts for every {level}: {names} "
        f"({PROBLEM_NAMES[config.problem_type or 'regression']})"
        + f"\n- learned as: {', '.join(learned)}; so are the metrics below"
        * (config.label_transforms is not None)
    )


def list_requirements(*names: str) -> list[str]:
    """Return what this package, if it is installed, requires of others, as pip takes it."""
    try:
        required = importlib.metadata.requires("rmat-hf") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [it for it in required if re.split(r"[^\w-]", it)[0] in names and ";" not in it]


def _describe_limits(max_atoms: Any) -> str:
    """Return the limits of every R-MAT model, with the processor's `max_atoms`."""
    versions = "".join(f"\n- Tested with `{it}`." for it in list_requirements("transformers"))
    return (
        "## Limits\n\n"
        "- Heavy atoms only, no stereo feature: two enantiomers are one molecule to it.\n"
        f"- Molecules with more heavy atoms than the processor's `max_atoms` (here {max_atoms}) "
        f"are refused.{versions}"
    )


def _describe_cost(reports: Mapping[str, dict[str, Any]]) -> str:
    """Return steps, hours and hardware."""
    rows = [row for report in reports.values() for row in report["log_history"]]
    summaries = [row for row in rows if "train_runtime" in row]
    hours = sum(row["train_runtime"] for row in summaries) / 3600
    steps = sum(row["step"] for row in summaries)
    device = PartialState().device.type
    return f"{steps:,} steps in {hours:.2f} hours (of the last resumption), {device}."


def _describe_ensemble(report: FinetuningReport) -> list[str]:
    """Return a line about the members; none for one model."""
    if not report.member_metrics:
        return []
    folds = ""
    if report.arguments.member_folds:
        folds = ", each held out another fold of train and valid, and `valid` is out of fold"
    return [
        f"an ensemble of {len(report.member_metrics)} models with different seeds{folds}; each "
        "alone: `member_metrics.json`; the spread of a prediction is their standard deviation"
    ]


def _describe_choice(report: FinetuningReport) -> list[str]:
    """Return where it was chosen what is kept, and what the metrics therefore mean."""
    arguments = report.arguments
    reason = f"what learned: {arguments.head}; {report.head_reason}"
    if arguments.head == "network":
        is_last = keeps_last_epoch(arguments.recipe, load_json_fields(arguments.training_arguments))
        choice = (
            "the last epoch, chosen on nothing" if is_last else "chosen by the validation metric"
        )
        choice += "; the test part was scored once"
        if not arguments.refit:
            return [reason, choice]
        refit = (
            "then trained anew on train and valid together to the same epoch; metrics of valid are "
            "those of the model before"
        )
        return [reason, choice, refit]
    beside = []
    if arguments.head in STACKS:
        networks = ""
        if arguments.head == STACK_WITH_NETWORK:
            networks = (
                f", and {report.config.num_networks} networks, each finetuned for "
                f"{arguments.num_train_epochs:g} epochs with another fold left out"
            )
        beside = [
            f"beside it a forest on counts of ECFP4 and descriptors{networks}; the weight of each "
            "from predictions of held-out folds"
        ]
    return [
        reason,
        "a Gaussian process on the frozen encoder, with one kernel for each of: "
        f"{', '.join(arguments.kernel_features)}; fitted on train and valid together by "
        "marginal likelihood",
        *beside,
        "metrics of train and valid leave out the fold of the row that is predicted, folds being "
        "of the kind of the split; the test part was scored once",
        "the weights hold vectors, counts and labels of the training molecules, from which these "
        "can be reconstructed",
    ]


def _format_cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_metric(it)}" for name, it in value.items())
    return f"{value:,}" if isinstance(value, int) else format_metric(value)
