"""push_folder(...): a model folder on the Hub, and what of it leaves this machine."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from huggingface_hub import EvalResultEntry, HfApi, ModelCard, eval_result_entries_to_yaml
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id, yaml_dump
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    FEATURE_EXTRACTOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from rmat_hf.adapters import HUB_ID, TRUST_MODULE
from rmat_hf.errors import UserError, explained_reading, get_reason, list_reading_errors
from rmat_hf.flags import declare_flag, declare_positional, validate_flags
from rmat_hf.inference import endpoint
from rmat_hf.loading import find_checkpoint, list_checkpoints
from rmat_hf.model import modeling_rmat
from rmat_hf.model.configuration_rmat import RMatKernelConfig, RMatStackConfig
from rmat_hf.model.pipeline_rmat import describe_pipeline
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import load_json, save_json
from rmat_hf.training.arguments import ARGUMENTS_FILE, TRIALS_FILE
from rmat_hf.training.model_card import (
    CARD_FILE,
    FOLDER_PLACEHOLDER,
    LOSS_PLOT,
    build_eval_results,
    build_plain_card,
    list_requirements,
)
from rmat_hf.training.report import ROW_FILES

logger = logging.getLogger(__name__)

_BASE_OF_PACKAGE = (
    "The base model %s comes with rmat-hf and is not on the Hub: predict and embed of rmat-hf load "
    "the adapter from there, the classes and pipelines of transformers do not. For these push the "
    "base too, and set base_model_name_or_path in %s to its name on the Hub."
)
HANDLER_FILE, REQUIREMENTS_FILE = "handler.py", "requirements.txt"
ENDPOINT_REQUIREMENTS = ("rdkit", "transformers")
EVAL_RESULTS_FILE = ".eval_results/rmat_hf.yaml"
# Models whose weights hold the features and labels of their training molecules.
_KEEPING_ROWS = (RMatKernelConfig.model_type, RMatStackConfig.model_type)
# How much is shared → the files of it, beside those of the levels before. What is in no list stays.
SHARES: dict[str, tuple[str, ...]] = {
    # what predicts; of the labels their names, units, mean and standard deviation are in it, and
    # what their held-out errors were
    "model": (
        *("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"),
        *("adapter_config.json", "*_rmat.py", CARD_FILE, "LICENSE*"),
        *("*.onnx", "*.onnx.data", HANDLER_FILE, REQUIREMENTS_FILE, EVAL_RESULTS_FILE),
    ),
    # how well, and how it was trained
    "metrics": (
        *("metrics.json", "member_metrics.json", "baselines.json", "training_log.json", LOSS_PLOT),
        *(ARGUMENTS_FILE, TRIALS_FILE, "pretraining_arguments.json", "pretraining_targets.json"),
    ),
    # molecules, labels and predictions, row by row
    "molecules": ROW_FILES,
}


@dataclass(kw_only=True)
class PushArguments:
    """Everything `run_push` needs to know; each field is a flag of `rmat push`."""

    folder: str = declare_positional("Folder of a model, or the name of one in the package.")
    repo_id: str = declare_positional("Repository on the Hub: USER/NAME.")
    share: str = declare_flag(
        "model",
        "What leaves: the model with the metrics in its card, the files of metrics and arguments "
        "too, or molecules, labels and predictions as well.",
        choices=SHARES,
    )
    private: bool = declare_flag(False, "Whether a new repository is private.")
    dry_run: bool = declare_flag(False, "List what would leave, and send nothing.")

    def __post_init__(self) -> None:
        """Raise a `UserError` for an unknown share."""
        validate_flags(self)


class Push(NamedTuple):
    """What [`push_folder`] sent.

    Args:
        url (`str`, *optional*): Address of the commit; none of a dry run.
        files (`dict[str, int]`): Every file that leaves, with its size in bytes.
        kept (`list[str]`): Files of the folder that stay on this machine.
    """

    url: str | None
    files: dict[str, int]
    kept: list[str]


def run_push(
    arguments: PushArguments, *, report_progress: Callable[[str], None] | None = None
) -> Push:
    """Push a model folder as the flags say; see [`push_folder`]."""
    return push_folder(
        arguments.folder,
        arguments.repo_id,
        share=arguments.share,
        private=arguments.private,
        dry_run=arguments.dry_run,
        report_progress=report_progress,
    )


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    share: str = "model",
    private: bool = False,
    dry_run: bool = False,
    report_progress: Callable[[str], None] | None = None,
) -> Push:
    """Push a saved model to the Hub: by default no molecule and no label of its training.

    The repository loads without this package (`trust_remote_code=True`), and has a card with
    `model-index`, evaluation results if the data set is on the Hub, and a `handler.py` for
    Inference Endpoints. The folder itself stays as it is. What leaves is listed first; what earlier
    pushes sent stays on the Hub.

    Args:
        folder (`str` or `Path`):
            Folder of `rmat finetune`, `rmat pretrain`, `rmat convert` or `save_pretrained`, or the
            name of a model that comes with the package.
        repo_id (`str`): `USER/NAME`; created if it is not there.
        share (`str`, *optional*, defaults to `"model"`):
            `"model"`: weights, configuration, processor, code and card, whose metrics are over
            all rows of a part; without intervals and domain if these rest on fingerprints.
            `"metrics"`: the files of metrics, losses and arguments too.
            `"molecules"`: the molecules with their labels and predictions, and the plot of them.
            Files that are none of these stay.
        private (`bool`, *optional*, defaults to `False`): Whether a new repository is private.
        dry_run (`bool`, *optional*, defaults to `False`): Whether to list and send nothing.
        report_progress (`Callable[[str], None]`, *optional*):
            Called with the list of what leaves, before anything does; by default it is logged.

    Returns:
        [`Push`]: The address, the files that left and those that did not.

    Raises:
        UserError: The folder has no model, the name is none of the Hub's, or the Hub refuses; a
            kernel head is to be sent without `share="molecules"`, of which its weights are made.

    Example:
    ```python
    >>> from rmat_hf import push_folder
    >>> push = push_folder("rmat-small", "me/rmat-small", dry_run=True)  # share="model"
    >>> push.kept[:3]
    ['loss_curves.png', 'metrics.json', 'pretraining_arguments.json']

    ```
    """
    source = Path(find_checkpoint(folder))
    if share not in SHARES:
        raise UserError(f"share {share!r} is unknown. Choose one of {', '.join(SHARES)}.")
    with explained_reading(f"The repository {repo_id!r}", also=(HFValidationError,)):
        validate_repo_id(repo_id)
    with TemporaryDirectory() as staging:
        stage = Path(staging)
        kept = stage_model(source, stage, share=share)
        _add_card(source, stage, kept=kept, repo_id=repo_id)
        files = {it.relative_to(stage).as_posix(): it.stat().st_size for it in _list_files(stage)}
        (report_progress or logger.info)(describe_push(files, kept, repo_id=repo_id))
        if (base := _find_base(stage)) in list_checkpoints():
            logger.warning(_BASE_OF_PACKAGE, base, ADAPTER_CONFIG_NAME)
        url = None if dry_run else _upload(stage, repo_id, private=private)
    return Push(url, files, kept)


def stage_model(source: Path, stage: Path, *, share: str) -> list[str]:
    """Copy what is shared of a model, and the code with it; return the files that stay."""
    _validate_share(source, share)
    kept = _stage_files(source, stage, share=share)
    if share != "molecules":
        kept += _leave_out_fingerprints(stage)
    _add_code(stage)
    return kept


def describe_push(files: dict[str, int], kept: list[str], *, repo_id: str) -> str:
    """Return the list of what leaves and what stays, a file a line."""
    lines = [f"To {repo_id}:", *(f"  {name} ({size:,} bytes)" for name, size in files.items())]
    if kept:
        lines += ["Stays here:", *(f"  {name}" for name in kept)]
    return "\n".join(lines)


def _validate_share(source: Path, share: str) -> None:
    """Refuse to send molecules that nobody has said are to be sent."""
    config = load_json(source / CONFIG_NAME) if (source / CONFIG_NAME).is_file() else {}
    if config.get("model_type") in _KEEPING_ROWS and share != "molecules":
        raise UserError(
            f"{source} is a stack or kernel head: its weights hold vectors, counts and labels of "
            "the training molecules, from which these can be reconstructed. Pass --share molecules "
            "if whoever gets the copy may have them, or make a model without them: rmat finetune "
            "--head network."
        )


def _leave_out_fingerprints(stage: Path) -> list[str]:
    """Take its trust out of a model where that holds fingerprints; return what stays."""
    config = stage / CONFIG_NAME
    fields = load_json(config) if config.is_file() else {}
    if (fields.pop("trust", None) or {}).get("kind") != "fingerprints":
        return []
    logger.warning(
        "Intervals and domain stay here: they rest on fingerprints of the molecules of training, "
        "from which these can be reconstructed. --share molecules sends them, and `rmat finetune "
        "--trust centers` makes a model that has none."
    )
    save_json(config, fields)
    for path in stage.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if TRUST_MODULE not in name.split(".")]  # noqa: SIM118 - no mapping
            weights, metadata = {name: file.get_tensor(name) for name in names}, file.metadata()
        save_file(weights, path, metadata=metadata)
    if (index := stage / SAFE_WEIGHTS_INDEX_NAME).is_file():
        content = load_json(index)
        places = content["weight_map"].items()
        known = {name: it for name, it in places if TRUST_MODULE not in name.split(".")}
        save_json(index, {**content, "weight_map": known})
    if (adapter := stage / ADAPTER_CONFIG_NAME).is_file():
        options = load_json(adapter)
        whole = [name for name in options["modules_to_save"] if name != TRUST_MODULE]
        save_json(adapter, {**options, "modules_to_save": whole})
    return [TRUST_MODULE]


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _stage_files(source: Path, stage: Path, *, share: str) -> list[str]:
    """Copy the shared files and return the names of the others."""
    levels = list(SHARES)[: list(SHARES).index(share) + 1]
    patterns = [pattern for level in levels for pattern in SHARES[level]]
    names = [path.relative_to(source).as_posix() for path in _list_files(source)]
    # a pattern is of files beside the model, not of a checkpoint or a model in a folder below
    shared = [
        name
        for name in names
        if any(name == it or ("/" not in name and fnmatch(name, it)) for it in patterns)
    ]
    if not any(name.endswith(".safetensors") for name in shared):
        raise UserError(f"{source} has no model: no .safetensors file. Choose another folder.")
    for name in shared:
        (stage / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, stage / name)
    return [name for name in names if name not in shared]


def _find_base(stage: Path) -> str | None:
    """Return the base model of an adapter, `None` for a model."""
    if not (stage / ADAPTER_CONFIG_NAME).is_file() or (stage / SAFE_WEIGHTS_NAME).is_file():
        return None
    base = str(load_json(stage / ADAPTER_CONFIG_NAME).get("base_model_name_or_path"))
    if base not in list_checkpoints() and not HUB_ID.fullmatch(base):
        raise UserError(
            f"The adapter's base model {base!r} is a folder of this machine. Push that first, and "
            f"set base_model_name_or_path in {ADAPTER_CONFIG_NAME} to its name on the Hub."
        )
    return base


def _add_code(stage: Path) -> None:
    """Add the code, which a model of the package lacks, and what an Inference Endpoint needs."""
    if not (stage / CONFIG_NAME).is_file() or _find_base(stage) is not None:
        return  # an adapter, which loads with its base model
    fields = load_json(stage / CONFIG_NAME)
    if "auto_map" not in fields:
        name = fields["architectures"][0]
        fields["auto_map"] = getattr(modeling_rmat, name).saved_auto_map
        save_json(stage / CONFIG_NAME, {**fields, "custom_pipelines": describe_pipeline(name)})
        if (stage / FEATURE_EXTRACTOR_NAME).is_file():
            RMatProcessor.from_pretrained(stage).save_pretrained(stage)
        for path in Path(modeling_rmat.__file__).parent.glob("*_rmat.py"):
            shutil.copyfile(path, stage / path.name)
    shutil.copyfile(endpoint.__file__, stage / HANDLER_FILE)
    needed = list_requirements(*ENDPOINT_REQUIREMENTS)
    (stage / REQUIREMENTS_FILE).write_text("\n".join(needed) + "\n")


def _add_card(source: Path, stage: Path, *, kept: list[str], repo_id: str) -> None:
    """Write the card: the folder's own, without what stays, or a plain one; and its results."""
    path = stage / CARD_FILE
    card: Any = ModelCard.load(path) if path.is_file() else build_plain_card(repo_id)
    text = card.text.replace(FOLDER_PLACEHOLDER, repo_id)
    for name in kept:
        text = text.replace(f" (`{name}`)", "")
    stays = tuple(it for name in kept for it in (f"`{name}`", f"({name})"))
    lines = [line for line in text.splitlines() if not any(it in line for it in stays)]
    if repo_id not in text and (stage / CONFIG_NAME).is_file() and _find_base(stage) is None:
        # its last section: how to use it
        lines += ["", "## " + build_plain_card(repo_id).text.rpartition("\n## ")[2].strip()]
    card.text = "\n".join(lines) + "\n"
    if not card.data.eval_results and (source / ARGUMENTS_FILE).is_file():
        run = load_json(source / ARGUMENTS_FILE)
        facts = {name: run[name] for name in ("problem_type", "dataset", "split")}
        card.data.model_name = card.data.model_name or repo_id
        card.data.eval_results = build_eval_results(load_json(source / "metrics.json"), **facts)
    card.save(path)
    entries = [
        EvalResultEntry(
            dataset_id=result.dataset_type,
            task_id=result.metric_name or result.metric_type,
            value=result.metric_value,
            notes=result.dataset_split,
        )
        for result in card.data.eval_results or []
        if "/" in result.dataset_type
    ]
    if entries:
        path = stage / EVAL_RESULTS_FILE
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml_dump(eval_result_entries_to_yaml(entries)))


def _upload(stage: Path, repo_id: str, *, private: bool) -> str:
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=stage, commit_message="Push with rmat-hf"
        )
    except list_reading_errors() as error:
        way_out = "Repeat the push with a connection to the Hub."
        if isinstance(error, HfHubHTTPError | LocalTokenNotFoundError):
            way_out = (
                "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there."
            )
        reason = get_reason(error).rstrip(".")
        raise UserError(
            f"The repository {repo_id!r} cannot be written: {reason}. {way_out}"
        ) from error
    return str(commit.commit_url)
