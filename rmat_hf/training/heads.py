"""Which head learns where nobody has said, and why; the evidence is in docs/heads.md."""

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pyarrow as pa

from rmat_hf.data.sources import open_table
from rmat_hf.data.stored_features import has_features
from rmat_hf.data.training_table import Rows
from rmat_hf.loading import read_checkpoint
from rmat_hf.model.modeling_rmat import (
    RMatForSequenceClassification,
    RMatForTokenClassification,
    RMatModel,
)
from rmat_hf.training.arguments import AUTO, SCRATCH, FinetuningArguments

# On the sets of docs/heads.md, of up to 2,000 rows, a stack was as good as a network or better.
# Beyond twice that nobody has looked, and the memory of a kernel grows with the square.
MAX_STACK_ROWS = 4_000
# Each label is fitted alone, for half a minute of 1,000 rows.
MAX_STACK_LABELS = 12
_CHUNK_SIZE = 1_000
_FINETUNED = {RMatForSequenceClassification.__name__, RMatForTokenClassification.__name__}


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
        reason = (
            f"up to {MAX_STACK_ROWS:,} rows, as it was as good as the network or better on the "
            "sets of docs/heads.md"
        )
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
        table = open_table(
            arguments.dataset, revision=arguments.dataset_revision, joins_splits=True
        )
        return table.schema, (chunk.num_rows for chunk in table.iterate_chunks(_CHUNK_SIZE))
    features = rows.features or next(iter(rows.with_format("arrow").iter(1))).schema
    schema = getattr(features, "arrow_schema", features)
    chunks = rows.with_format("arrow").iter(batch_size=_CHUNK_SIZE)
    return schema, (chunk.num_rows for chunk in chunks)
