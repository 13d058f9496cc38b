"""`rmat VERB`: parse the flags, call one function, report."""

import inspect
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from typing import Annotated, Any, get_type_hints

import typer
from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from rmat_hf import __version__
from rmat_hf.data.corpus_summary import describe_corpus
from rmat_hf.data.feature_cache import find_feature_cache_dir
from rmat_hf.errors import (
    MessageFormatter,
    describe_error,
    escape_message,
    hide_credentials,
    list_user_errors,
    quiet_without_reader,
    stopped_by_signals,
)
from rmat_hf.evaluation.accuracy_benchmark import EvaluationArguments, run_accuracy_benchmark
from rmat_hf.evaluation.report import build_overview
from rmat_hf.inference.conversion import convert_checkpoint
from rmat_hf.inference.screening import is_output_folder, run_embedding, run_prediction
from rmat_hf.inference.screening_arguments import (
    PredictionArguments,
    build_screening,
    describe_screening,
)
from rmat_hf.inference.screening_options import ScreeningResult
from rmat_hf.list_flags import ListFlagCommand
from rmat_hf.training.arguments import (
    DEFAULT_CACHE,
    ConversionArguments,
    FinetuningArguments,
)
from rmat_hf.training.corpus_arguments import FeaturizationArguments, run_featurization
from rmat_hf.training.finetuning import run_finetuning
from rmat_hf.training.pretraining import run_pretraining
from rmat_hf.training.pretraining_arguments import PretrainingArguments
from rmat_hf.training.run_folder import describe_metrics
from rmat_hf.training.task import choose_cache_dir

app = typer.Typer(
    help="R-MAT: finetune on a table of SMILES, predict, embed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def add_command(verb: str, arguments_class: type, *, report: Callable[[Any], None]) -> None:
    """Add a verb whose flags are the fields of a dataclass.

    Args:
        verb (`str`): Name of the command.
        arguments_class (`type`): Dataclass; `metadata["help"]` of a field is its help.
        report (`Callable`): Called with the arguments; runs the verb and prints the outcome.
    """
    hints = get_type_hints(arguments_class)
    parameters = []
    for argument in fields(arguments_class):
        flag = f"--{argument.name.replace('_', '-')}"
        default = argument.default
        if argument.default_factory is not MISSING:
            default = argument.default_factory()
        is_required = default is MISSING
        option = typer.Option(flag, help=argument.metadata["help"], show_default=bool(default))
        parameters.append(
            inspect.Parameter(
                argument.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if is_required else default,
                annotation=Annotated[hints[argument.name], option],
            )
        )

    def command(**values: Any) -> None:
        try:
            with stopped_by_signals():
                report(arguments_class(**values))
        except KeyboardInterrupt as interruption:
            way_out = ""
            if "resume" in values:
                way_out = " Repeat the command with --resume to continue."
            elif verb in ("featurize", "benchmark") or (
                "task" in values and is_output_folder(values["output"])
            ):
                way_out = " Repeat the command to continue."
            print(f"rmat: {str(interruption) or 'interrupted'}.{way_out}", file=sys.stderr)
            raise typer.Exit(getattr(interruption, "exit_code", 130)) from None

    # typer reads a function's signature
    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = report.__doc__
    app.command(verb, cls=ListFlagCommand)(command)


def featurize(arguments: FeaturizationArguments) -> None:
    """Featurize molecules for pretraining; write a folder of Parquet shards."""
    print(describe_corpus(run_featurization(arguments, show_progress=True)))
    print(f"Wrote {arguments.output_dir}: the shards, corpus.json and failed_rows.csv.")


def finetune(arguments: FinetuningArguments) -> None:
    """Finetune on a table of SMILES and labels; write a folder that predicts."""
    result = run_finetuning(
        replace(arguments, feature_cache=_find_feature_cache(arguments.feature_cache))
    )
    # of several processes one tells what all of them did
    if not PartialState().is_main_process:
        return
    print(describe_metrics(result.metrics, result.baselines))
    print(
        f"\nWrote {result.output_dir}: the model, metrics.json, predictions.csv and a model card."
    )
    if result.dropped:
        print(f"{len(result.dropped)} rows were not used; see dropped_rows.csv there.")


def pretrain(arguments: PretrainingArguments) -> None:
    """Pretrain on a featurized corpus; write a model to finetune."""
    result = run_pretraining(arguments)
    if not PartialState().is_main_process:
        return
    for stage, metrics in result.metrics.items():
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        print(f"{stage}: " + ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()))
    print(f"\nWrote {result.output_dir}: the model, metrics.json and a model card.")


def predict(arguments: PredictionArguments) -> None:
    """Predict the molecules of a file, or a few SMILES, with a finetuned model."""
    _screen(run_prediction, arguments, noun="predictions")


def embed(arguments: PredictionArguments) -> None:
    """Compute one vector per molecule of a file, or of a few SMILES."""
    _screen(run_embedding, arguments, noun="embeddings")


def convert(arguments: ConversionArguments) -> None:
    """Convert weights of the authors' code to a model folder."""
    conversion = convert_checkpoint(arguments.weights, arguments.config, pooling=arguments.pooling)
    conversion.save(arguments.output_dir)
    for note in conversion.notes:
        print(f"Note: {note}")
    print(f"Wrote {arguments.output_dir}.")


def benchmark(arguments: EvaluationArguments) -> None:
    """Compare models, baselines and other tools on the same splits; write a report."""
    result = run_accuracy_benchmark(
        replace(arguments, feature_cache=_find_feature_cache(arguments.feature_cache)),
        report_progress=lambda line: print(line, file=sys.stderr),
    )
    print(build_overview(result.results))
    print(f"\nWrote {arguments.output_dir}: report.md, results.json, plots and all runs.")
    if not result.is_complete:
        raise typer.Exit(1)


def _find_feature_cache(feature_cache: str | None) -> str | None:
    """Return the cache that was asked for; the default one is where the environment says."""
    cache_home = os.environ.get("XDG_CACHE_HOME")
    if cache_home and feature_cache == DEFAULT_CACHE:
        return str(find_feature_cache_dir(cache_home))
    return feature_cache


def _screen(
    run: Callable[..., ScreeningResult], arguments: PredictionArguments, *, noun: str
) -> None:
    cache_dir = choose_cache_dir(_find_feature_cache(arguments.feature_cache))
    print(describe_screening(run(**build_screening(arguments, cache_dir=cache_dir)), noun=noun))


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _configure(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(MessageFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # bars for reading and writing weights would break up those of training and prediction
    disable_progress_bar()


add_command("featurize", FeaturizationArguments, report=featurize)
add_command("pretrain", PretrainingArguments, report=pretrain)
add_command("finetune", FinetuningArguments, report=finetune)
add_command("predict", PredictionArguments, report=predict)
add_command("embed", PredictionArguments, report=embed)
add_command("convert", ConversionArguments, report=convert)
add_command("benchmark", EvaluationArguments, report=benchmark)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    try:
        with quiet_without_reader():
            app()
    except list_user_errors() as error:
        message = describe_error(error)
        if message is None:
            raise
        message = escape_message(hide_credentials(message))
        print(f"rmat: error: {message}", file=sys.stderr)
        sys.exit(2)
