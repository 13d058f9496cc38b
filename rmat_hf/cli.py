"""`rmat VERB`: one table, verb → its flags (a dataclass) → what runs it and prints the outcome."""

import argparse
import difflib
import importlib
import json
import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import MISSING, Field, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from rmat_hf import __version__
from rmat_hf.errors import (
    ConsoleHandler,
    MessageFormatter,
    OnceFilter,
    UserError,
    describe_error,
    escape_message,
    list_user_errors,
    quiet_without_reader,
    stopped_by_signals,
)
from rmat_hf.flags import list_choices, name_flag

# what a verb has done, as `--json` prints it
Report = dict[str, Any]


def report_fields(result: Any) -> Report:
    """Return the fields of a dataclass by their names."""
    return {it.name: getattr(result, it.name) for it in fields(result)}


def featurize(arguments: Any) -> Report:
    """Featurize molecules for pretraining; write a folder of Parquet shards."""
    from rmat_hf.data.corpus import describe_corpus, run_featurization

    report = run_featurization(arguments, show_progress=True)
    print(describe_corpus(report))
    print(f"Wrote {arguments.output_dir}: the shards, corpus.json and failed_rows.csv.")
    return {"output": arguments.output_dir, **report_fields(report)}


def pretrain(arguments: Any) -> Report:
    """Pretrain on a featurized corpus; write a model to finetune."""
    from rmat_hf.training.pretraining import pretrain as run

    result = run(**vars(arguments))
    if _is_main_process():
        for stage, metrics in result.metrics.items():
            numbers = [f"{name} {it:.4f}" for name, it in metrics.items() if isinstance(it, float)]
            print(f"{stage}: {', '.join(numbers)}")
        print(f"\nWrote {result.output_dir}: the model, metrics.json and a model card.")
    return {"output": result.output_dir, "metrics": result.metrics}


def finetune(arguments: Any) -> Report:
    """Finetune on a table of SMILES and labels; write a folder that predicts."""
    from rmat_hf.training.finetuning import finetune as run

    if _is_main_process():
        # what was read, and which phase runs
        logging.getLogger("rmat_hf.training").setLevel(logging.INFO)
    result = run(**vars(arguments))
    if _is_main_process():
        print(result.summary)
        print(f"\nWhat learned: {result.head}.")
        print(f"Wrote {result.output_dir}: model, predictions.csv, report.md and model card.")
        told = f"rmat predict --model {shlex.quote(str(result.output_dir))}"
        print(f"Next: {told} --input library.csv --output predicted.csv")
    found = {name: getattr(result, name) for name in ("metrics", "baselines", "head")}
    return {"output": result.output_dir, **found, "num_dropped": len(result.dropped)}


def check(arguments: Any) -> Report:
    """Look through a table of molecules and labels; say what stands in it and what settles it."""
    from rmat_hf.data.check_report import (
        list_left_out,
        name_changes,
        name_first_step,
        propose_finetuning,
        run_check,
    )

    report = run_check(arguments)
    print(report)
    changes = name_changes(arguments.fix) if arguments.fix else None
    for path in filter(None, [arguments.fix, changes, arguments.html]):
        print(f"Wrote {path}.")
    command = propose_finetuning(report, arguments)
    print(f"Next: {command or name_first_step(report)}")
    for line in list_left_out(report):
        print(line)
    names = ("num_rows", "num_molecules", "smiles_column", "label_columns")
    findings = [report_fields(finding) for finding in report.findings]
    found = {name: getattr(report, name) for name in names}
    return {**found, "findings": findings, "command": command}


def predict(arguments: Any) -> Report:
    """Predict the molecules of a file, or a few SMILES, with a finetuned model."""
    from rmat_hf.inference.screening import describe_screening, run_prediction

    result = run_prediction(arguments, show_progress=True)
    print(describe_screening(result, noun="predictions"))
    return report_fields(result)


def evaluate(arguments: Any) -> Report:
    """Score models on labeled molecules, beside each other and other tools; say what follows."""
    from rmat_hf.evaluation.model_evaluation import run_model_evaluation

    result = run_model_evaluation(arguments)
    print(result.describe())
    if arguments.output:
        print(f"\nWrote {arguments.output}: report.md, metrics.json and predictions.csv.")
    found = {"num_rows": result.scores.num_rows, "metrics": result.scores.to_json()}
    notes = {"verdict": result.verdict, "notes": result.notes}
    return {"output": arguments.output, **found, **notes}


def embed(arguments: Any) -> Report:
    """Compute one vector per molecule of a file, or of a few SMILES."""
    from rmat_hf.inference.screening import describe_screening, run_embedding

    result = run_embedding(arguments, show_progress=True)
    print(describe_screening(result, noun="embeddings"))
    return report_fields(result)


def explain(arguments: Any) -> Report:
    """Say which atoms, groups and relations predictions come from; write rows, pictures, a page."""
    from rmat_hf.inference.explanation_folder import PAGE_FILE, run_explanation
    from rmat_hf.inference.screening import describe_screening

    result = run_explanation(arguments, show_progress=True)
    print(describe_screening(result, noun="explanations"))
    if result.is_complete:
        print(f"{arguments.output}/{PAGE_FILE} shows the molecules of interest.")
    return report_fields(result)


def convert(arguments: Any) -> Report:
    """Convert weights of the authors' code to a model folder."""
    from rmat_hf.inference.conversion import run_conversion

    notes = run_conversion(arguments).notes
    for note in notes:
        print(f"Note: {note}")
    print(f"Wrote {arguments.output_dir}.")
    return {"output": arguments.output_dir, "notes": notes}


def push(arguments: Any) -> Report:
    """Push a model folder to the Hub, by default without a molecule or label of its training."""
    from rmat_hf.inference.sharing import run_push

    result = run_push(arguments, report_progress=print)
    print(f"Wrote {result.url}." if result.url else "Nothing was sent.")
    return result._asdict()


def export(arguments: Any) -> Report:
    """Write a finetuned model as an ONNX program, which predicts without PyTorch."""
    from rmat_hf.inference.export import run_export

    exported = run_export(arguments)
    print(
        f"Wrote {exported.path} and the processor. Largest difference from PyTorch: "
        f"{exported.max_difference:.1g} standard deviations of the label."
    )
    return {"output": exported.path, "max_difference": exported.max_difference}


def demo(arguments: Any) -> Report:
    """Write a page in the browser for a model, a Gradio Space, and open it."""
    from rmat_hf.inference.demo import launch_demo, write_demo

    print(f"Wrote {write_demo(arguments)}: app.py, requirements.txt, README.md and the model.")
    if arguments.launch:
        launch_demo(arguments).block_thread()
    return {"output": arguments.folder}


def benchmark(arguments: Any) -> Report:
    """Compare models, baselines and other tools on the same splits; write a report."""
    from rmat_hf.evaluation.accuracy_benchmark import run_accuracy_benchmark
    from rmat_hf.evaluation.report import build_overview

    results = run_accuracy_benchmark(
        arguments, report_progress=lambda line: print(line, file=sys.stderr)
    )
    print(build_overview(results))
    print(f"\nWrote {arguments.output_dir}: report.md, results.json, plots and all runs.")
    is_complete = bool(results["is_complete"])
    return {"output": arguments.output_dir, "is_complete": is_complete}


# verb → module and name of the dataclass of its flags, and the function that takes it
VERBS: dict[str, tuple[str, str, Any]] = {
    "featurize": ("rmat_hf.data.corpus", "FeaturizationArguments", featurize),
    "pretrain": ("rmat_hf.training.pretraining_arguments", "PretrainingArguments", pretrain),
    "finetune": ("rmat_hf.training.arguments", "FinetuningArguments", finetune),
    "check": ("rmat_hf.data.check_report", "CheckArguments", check),
    "predict": ("rmat_hf.inference.screening", "PredictionArguments", predict),
    "embed": ("rmat_hf.inference.screening", "PredictionArguments", embed),
    "evaluate": ("rmat_hf.evaluation.model_evaluation", "ModelEvaluationArguments", evaluate),
    "explain": ("rmat_hf.inference.explanation_folder", "ExplanationArguments", explain),
    "convert": ("rmat_hf.inference.conversion", "ConversionArguments", convert),
    "push": ("rmat_hf.inference.sharing", "PushArguments", push),
    "export": ("rmat_hf.inference.export", "ExportArguments", export),
    "demo": ("rmat_hf.inference.demo", "DemoArguments", demo),
    "benchmark": ("rmat_hf.evaluation.accuracy_benchmark", "EvaluationArguments", benchmark),
}
JSON_FLAG = "--json"
HELP = "\n".join(
    [
        "Usage: rmat VERB --FLAG VALUE ...\n",
        "R-MAT: finetune on a table of SMILES, predict, embed.\n",
        *(f"  {verb:<11}{function.__doc__}" for verb, (_, _, function) in VERBS.items()),
        "\nrmat VERB --help lists the flags of a verb, rmat --version tells the version.",
    ]
)


class FlagParser(argparse.ArgumentParser):
    """Parses the flags of a verb; a mistake is one line that says where to look."""

    @property
    def takes_table(self) -> bool:
        """Whether the table stands without a flag."""
        return any(it.dest == "input" and not it.option_strings for it in self._actions)

    def knows(self, flag: str) -> bool:
        """Tell whether the verb has a flag of this name."""
        return flag in self._option_string_actions

    def error(self, message: str) -> NoReturn:
        """Raise a [`UserError`], with the flag that was probably meant."""
        hint, unknown = "", re.search(r"(?:arguments:|no verb) '?([\w-]+)", message)
        if unknown is not None:
            known = [*self._option_string_actions, *VERBS]
            similar = difflib.get_close_matches(unknown[1], known, n=1)
            hint = f" Did you mean {similar[0]}?" if similar else ""
        raise UserError(f"{message}.{hint} See {self.prog} --help.")


def build_parser(verb: str) -> FlagParser:
    """Return the parser of a verb, whose flags are the fields of its dataclass."""
    module, name, function = VERBS[verb]
    arguments_class = getattr(importlib.import_module(module), name)
    parser = FlagParser(
        prog=f"rmat {verb}",
        description=function.__doc__,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(arguments_class=arguments_class)
    hints = get_type_hints(arguments_class)
    for flag in fields(arguments_class):
        if flag.metadata.get("is_positional"):
            parser.add_argument(flag.name, help=flag.metadata["help"], metavar=flag.name.upper())
        else:
            parser.add_argument(name_flag(flag.name), **_describe_flag(flag, hints[flag.name]))
    text = "Print the outcome as one JSON object, and everything else on standard error."
    parser.add_argument(JSON_FLAG, help=text, action="store_true", dest=JSON_FLAG)
    return parser


def _describe_flag(flag: "Field[Any]", hint: Any) -> dict[str, Any]:
    text = flag.metadata["help"].replace("%", "%%")
    default = flag.default if flag.default_factory is MISSING else flag.default_factory()
    if default is MISSING:
        text = f"{text} [required]"
    elif default:
        text = f"{text} [default: {' '.join(default) if isinstance(default, list) else default}]"
    kind = next((kind for kind in (bool, int, float) if kind in (hint, *get_args(hint))), str)
    if kind is bool:
        return {"help": text, "action": argparse.BooleanOptionalAction}
    metavar = "|".join(list_choices(flag, hint)) or kind.__name__.upper()
    options = {"help": text, "type": kind, "required": default is MISSING, "metavar": metavar}
    return options | ({"nargs": "+", "action": "extend"} if get_origin(hint) is list else {})


def parse_flags(verb: str, words: list[str]) -> Any:
    """Return the arguments of a verb from `--smiles CCO CCN`, `--smiles=C=C`, `--seed 1`."""
    parser = build_parser(verb)
    spelled = [_spell(word, parser) for word in words]
    values = vars(parser.parse_args([word for word in spelled if word is not None]))
    values.pop(JSON_FLAG, None)
    arguments = values.pop("arguments_class")(**values)
    cache_home = os.environ.get("XDG_CACHE_HOME")
    if cache_home and getattr(arguments, "feature_cache", None) == "default":
        return replace(arguments, feature_cache=str(Path(cache_home) / "rmat-hf" / "features"))
    return arguments


def _spell(word: str, parser: FlagParser) -> str | None:
    """Return a flag as the verb spells it: a table is `--dataset`, `--input` or has no flag."""
    flag, *value = word.split("=", 1)
    if flag in ("--input", "--dataset") and parser.takes_table:
        return value[0] if value else None
    for one, other in (("--input", "--dataset"), ("--dataset", "--input")):
        spelled = flag.replace(one, other)
        if not parser.knows(flag) and parser.knows(spelled):
            return "=".join([spelled, *value])
    return word


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    try:
        with quiet_without_reader():
            sys.exit(_run(sys.argv[1:]))
    except list_user_errors() as error:
        message = describe_error(error)
        if message is None:
            raise
        print(f"rmat: error: {escape_message(message)}", file=sys.stderr)
        _print_json(sys.argv[1:], exit_code=2, report={"error": message})
        sys.exit(2)


def _run(words: list[str]) -> int:
    verb = words[0] if words else ""
    if verb in ("", "-h", "--help", "--version"):
        print(__version__ if verb == "--version" else HELP)
        return 0 if verb else 2
    if verb not in VERBS:
        FlagParser(prog="rmat").error(f"There is no verb {verb!r}. Known: {', '.join(VERBS)}")
    handler = ConsoleHandler()
    handler.setFormatter(MessageFormatter("%(levelname)s: %(message)s"))
    handler.addFilter(OnceFilter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    arguments: Any = None
    try:
        with stopped_by_signals():
            # imports PyTorch
            arguments = parse_flags(verb, words[1:])
            from transformers.utils.logging import disable_progress_bar

            # bars of weights would break up those of training and prediction
            disable_progress_bar()
            with redirect_stdout(sys.stderr) if JSON_FLAG in words else nullcontext():
                report = VERBS[verb][2](arguments)
    except KeyboardInterrupt as interruption:
        # as in `stopped_by_signals`, until the process has ended
        sys.excepthook = lambda *_: None
        message = f"{str(interruption) or 'interrupted'}.{_find_way_out(verb, arguments)}"
        print(f"rmat: {message}", file=sys.stderr)
        exit_code = getattr(interruption, "exit_code", 130)
        _print_json(words, exit_code=exit_code, report={"error": message})
        return exit_code
    exit_code = int(verb == "benchmark" and not report["is_complete"])
    _print_json(words, exit_code=exit_code, report=report)
    return exit_code


def _find_way_out(verb: str, arguments: Any) -> str:
    if hasattr(arguments, "resume"):
        return " Repeat the command with --resume to continue."
    if getattr(arguments, "is_folder", False) or verb in ("featurize", "benchmark"):
        return " Repeat the command to continue."
    return ""


def _print_json(words: list[str], *, exit_code: int, report: Report) -> None:
    if JSON_FLAG in words:
        found = {"verb": words[0], "version": __version__, "exit_code": exit_code, **report}
        print(json.dumps(_make_plain(found)))


def _make_plain(value: Any) -> Any:
    """Return what JSON knows: no NaN, no path, no number of NumPy."""
    if isinstance(value, Mapping):
        return {str(name): _make_plain(it) for name, it in value.items()}
    if isinstance(value, list | tuple | set):
        return [_make_plain(it) for it in value]
    if isinstance(value, Real) and not isinstance(value, int):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)


def _is_main_process() -> bool:
    # of several processes one tells what all of them did
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


if __name__ == "__main__":
    main()
