"""What a finetuning decides before it starts: columns, kind of labels, which head learns."""

import logging
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import accumulate
from typing import Any

import pyarrow as pa
from datasets import IterableDataset

from rmat_hf.data.check import MOST_CHECKED_ROWS, Finding, TableReport, look_through
from rmat_hf.data.columns import find_numbered_columns, holds_yes_or_no, list_numbers
from rmat_hf.data.frames import open_rows
from rmat_hf.data.labels import describe_recoding
from rmat_hf.data.measurements import find_transform_problem
from rmat_hf.data.stored_features import has_features
from rmat_hf.data.table_files import HUB_PREFIX
from rmat_hf.data.training_table import Rows
from rmat_hf.errors import UserError, say_count
from rmat_hf.loading import read_checkpoint
from rmat_hf.model.modeling_rmat import (
    RMatForSequenceClassification,
    RMatForTokenClassification,
    RMatModel,
)
from rmat_hf.training.arguments import AUTO, CLASSIFICATION, SCRATCH, FinetuningArguments

logger = logging.getLogger(__name__)

# Larger tables are not looked through before training.
# Flags with an entry for each label.
_OF_LABELS = ("label_units", "label_transform")

# On the sets of docs/heads.md, of up to 2,000 rows, a stack was as good as a network or better.
# Beyond twice that nobody has looked, and the memory of a kernel grows with the square.
MAX_STACK_ROWS = 4_000
# Each label is fitted alone, for half a minute of 1,000 rows.
MAX_STACK_LABELS = 12
_CHUNK_SIZE = 1_000
_FINETUNED = {RMatForSequenceClassification.__name__, RMatForTokenClassification.__name__}


def prepare_arguments(
    arguments: FinetuningArguments, rows: Rows | None = None
) -> FinetuningArguments:
    """Return the arguments with the columns and the problem type that the table itself tells.

    Its cells are checked as `rmat check` does, and what was found is told with the flag that
    settles it; labels with nothing to learn are left out where there are others. Molecules are
    looked at when they are featurized.
    Tables that are featurized, streamed, on the Hub or large, and labels of atoms, are taken as the
    arguments say.
    """
    if isinstance(rows, IterableDataset):
        return _take_as_given(arguments)
    revision = arguments.dataset_revision
    table = open_rows(arguments.dataset if rows is None else rows, revision=revision)
    is_remote = any(file.startswith(HUB_PREFIX) for file in table.files)
    is_other = has_features(table.schema) or is_remote or arguments.level == "atom"
    if is_other or table.num_rows > MOST_CHECKED_ROWS:
        return _refuse_without_units(_take_as_given(arguments))
    beside = [*arguments.label_options.columns, *filter(None, [arguments.group_column])]
    report = look_through(
        table,
        smiles_column=arguments.smiles_column,
        label_columns=arguments.label_columns,
        split_column=arguments.split_column,
        others=[*beside, *filter(None, [arguments.time_column])],
        with_molecules=False,
    )
    if not report.label_columns:
        raise UserError(f"{table.source} has no column {_describe_lack(report, others=beside)}")
    changes = _choose_labels(arguments, report)
    settled = replace(arguments, class_columns=changes["class_columns"])
    unsettled = list(_list_unsettled(report, settled))
    logger.info("%s", _describe(report, unsettled))
    if added := [it for it in settled.class_columns if it not in arguments.class_columns]:
        text = "Yes or no beside numbers is learned as a class: --class-columns %s."
        logger.info(text, shlex.join(added))
    for finding in unsettled:
        # here a run without the flag is all but lost
        is_loss = finding.topic == "skew" or finding.needs_fix
        level = logging.WARNING if is_loss else logging.INFO
        logger.log(level, "%s. %s", finding.message, finding.way_out)
    if arguments.problem_type == CLASSIFICATION:
        changes["problem_type"] = _choose_problem_type(report, changes["label_columns"])
    return _refuse_without_units(replace(arguments, smiles_column=report.smiles_column, **changes))


def _refuse_without_units(arguments: FinetuningArguments) -> FinetuningArguments:
    if problem := find_transform_problem(arguments.label_options):
        raise UserError(problem)
    return arguments


def _take_as_given(arguments: FinetuningArguments) -> FinetuningArguments:
    if not arguments.label_columns or arguments.problem_type == CLASSIFICATION:
        raise UserError(
            "The labels of data that are featurized, streamed, on the Hub, large or of atoms are "
            "not looked for. Name --label-columns, and the --problem-type in full."
        )
    return arguments


def _choose_labels(arguments: FinetuningArguments, report: TableReport) -> dict[str, Any]:
    """Return the labels that can be learned, and what other flags say of each of them."""
    names = report.label_columns
    kept = [name for name in names if name not in report.useless_labels] or names
    if len(kept) < len(names):
        left_out = ", ".join(repr(name) for name in names if name not in kept)
        logger.warning("Labels with nothing to learn are left out: %s.", left_out)
    changes: dict[str, Any] = {"label_columns": kept}
    changes["class_columns"] = _choose_class_columns(arguments, report, label_columns=kept)
    units = [report.label_units[name] for name in kept]
    if not arguments.label_units and any(units):
        changes["label_units"] = units
    known = {flag.name for flag in fields(arguments)}
    for flag in (it for it in _OF_LABELS if it in known):
        given = getattr(arguments, flag)
        if len(given) == len(names):
            of_names = dict(zip(names, given, strict=True))
            changes[flag] = [of_names[name] for name in kept]
    return changes


def _describe_lack(report: TableReport, *, others: list[str]) -> str:
    """Say why no label was found, and how to name one."""
    names = report.covariate_columns
    if not names and (numbered := find_numbered_columns(report.frame, others=others)):
        return (
            f"of numbers but {', '.join(map(repr, numbered))}, which seems to count or name "
            f"the rows, or a price. If it is a label: --label-columns {shlex.quote(numbered[0])}."
        )
    kind = "that is a label for certain" if names else "of numbers"
    columns = ", ".join(names or report.frame.columns)
    return f"{kind}. Name labels by --label-columns, of: {columns}."


def _choose_class_columns(
    arguments: FinetuningArguments, report: TableReport, *, label_columns: list[str]
) -> list[str]:
    """Return the labels that are yes or no among numbers.

    Of labels that are named, 1 and 0 are numbers unless told otherwise, and words are not.
    """
    given, binary = arguments.class_columns, report.binary_labels
    are_numbers = [it in report.label_transforms and it not in binary for it in label_columns]
    if arguments.problem_type != "regression" or not any(are_numbers):
        return given
    is_told = bool(arguments.label_columns)
    found = [it for it in binary if not is_told or holds_yes_or_no(report.frame[it], "")]
    return [it for it in label_columns if it in found or it in given]


def _choose_problem_type(report: TableReport, label_columns: list[str]) -> str:
    """Return what classes in these columns are: one of several, or yes and no."""
    others = [name for name in label_columns if name not in report.binary_labels]
    if others and len(label_columns) > 1:
        way_out = describe_recoding(others[0], report.frame[others[0]])
        if others[0] in report.label_transforms:
            binary = shlex.join(it for it in label_columns if it in report.binary_labels)
            way_out = "Numbers are learned without --problem-type"
            way_out += f", beside --class-columns {binary}." if binary else "."
        raise UserError(
            f"--problem-type {CLASSIFICATION} with several labels needs yes and no (1 and 0) in "
            f"each, and these have other values: {', '.join(others)}. {way_out}".rstrip()
            + " Or finetune that label alone."
        )
    numbers = list_numbers(report.frame[others[0]]) if others else []
    fractions = [it for it in numbers if it % 1]
    if 2 * len(fractions) > len(numbers):
        raise UserError(
            f"Label {others[0]!r} has numbers, as {fractions[0]:g}, which are no classes. They are "
            "learned without --problem-type; where classes are wanted, write these in a column."
        )
    return "single_label_classification" if others else "multi_label_classification"


def _list_unsettled(report: TableReport, arguments: FinetuningArguments) -> Iterator[Finding]:
    """Yield what a flag settles that was not given."""
    usual = vars(FinetuningArguments(dataset=arguments.dataset, output_dir=arguments.output_dir))
    is_open = {name for name, it in vars(arguments).items() if usual.get(name) == it}
    if arguments.problem_type != "regression":
        is_open -= {"label_transform"}
    for finding in report.findings:
        named = {it.replace("-", "_") for it in re.findall(r"--([a-z-]+)", finding.way_out)}
        # the unit is read off the table
        named -= {"label_units"}
        if named & is_open or finding.needs_fix:
            yield finding


def _describe(report: TableReport, unsettled: list[Finding]) -> str:
    labels = ", ".join(map(repr, report.label_columns))
    if report.covariate_columns:
        labels += f" (not {', '.join(map(repr, report.covariate_columns))})"
    counts: dict[str, int] = {}
    # what a flag settles has a line of its own, or was settled
    others = [it for it in report.findings if it not in unsettled and it.topic != "skew"]
    for finding in (it for it in others if it.is_serious):
        counts[finding.topic] = counts.get(finding.topic, 0) + len(finding.rows)
    listed = "; ".join(
        f"{topic} ({say_count(number, 'row')})" if number else topic
        for topic, number in counts.items()
    )
    found = f" The check has found: {listed}; rmat check tells more." if listed else ""
    return (
        f"{report.source}: {say_count(report.num_rows, 'row')} ({report.description}), SMILES in "
        f"{report.smiles_column!r}, labels {labels}.{found}"
    )


# Which head learns where nobody has said; the evidence is in docs/heads.md


def choose_head(
    arguments: FinetuningArguments, rows: Rows | None, *, has_adapter: bool = False
) -> tuple[FinetuningArguments, str]:
    """Return the arguments with the head that learns, and why it does, for the card."""
    if arguments.head != AUTO:
        return arguments, "asked for"
    if reason := _find_need_of_network(arguments, rows, has_adapter=has_adapter):
        head = "network"
    elif arguments.class_columns:
        head, reason = "kernel", "numbers and classes together are not for the stack"
    else:
        head = "stack"
        reason = f"the default up to {MAX_STACK_ROWS:,} rows, see docs/heads.md"
    return replace(arguments, head=head), reason


def _find_need_of_network(
    arguments: FinetuningArguments, rows: Rows | None, *, has_adapter: bool
) -> str | None:
    """Say why the network learns itself; nothing if it need not."""
    if arguments.model == SCRATCH:
        return "random weights have no vectors to build on"
    if has_adapter or (given := arguments.list_network_flags()):
        return f"only it reads {'peft_config' if has_adapter else ', '.join(given)}"
    if (num_labels := len(arguments.label_columns)) > MAX_STACK_LABELS:
        return f"other heads would fit each of the {num_labels} labels alone"
    checkpoint = read_checkpoint(arguments.model, revision=arguments.model_revision)
    if checkpoint.adapter is not None or _FINETUNED & {*(checkpoint.config.architectures or [])}:
        return f"{arguments.model} was finetuned, perhaps on these labels"
    if checkpoint.find_untrained(RMatModel):
        return f"the pooling of {arguments.model} is not trained"
    schema, sizes = _open_rows(arguments, rows)
    if has_features(schema):
        return "the rows have features, of which other heads want more"
    if any(num_rows > MAX_STACK_ROWS for num_rows in accumulate(sizes)):
        return f"there are more than {MAX_STACK_ROWS:,} rows"
    return None


def _open_rows(arguments: FinetuningArguments, rows: Rows | None) -> tuple[pa.Schema, Any]:
    """Return the schema of the rows, and the numbers of them, piece by piece."""
    if rows is None:
        table = open_rows(arguments.dataset, revision=arguments.dataset_revision)
        return table.schema, (chunk.num_rows for chunk in table.iterate_chunks(_CHUNK_SIZE))
    features = rows.features or next(iter(rows.with_format("arrow").iter(1))).schema
    schema = getattr(features, "arrow_schema", features)
    chunks = rows.with_format("arrow").iter(batch_size=_CHUNK_SIZE)
    return schema, (chunk.num_rows for chunk in chunks)
