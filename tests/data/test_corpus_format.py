import io

from tiny import TINY_SMILES

from rmat_hf.data.corpus_format import (
    SHARD_SCHEMA,
    build_processor,
    describe_processor,
    encode_shard,
    find_difference,
    generalize_reason,
    name_shard,
    read_shard_header,
)
from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.stored_features import count_nodes
from rmat_hf.data.training_table import DroppedRow
from rmat_hf.model.processing_rmat import RMatProcessor


def encode_tiny_shard() -> bytes:
    processor = RMatProcessor(geometry="bounds")
    smiles = [*TINY_SMILES, "C1CC"]
    outcomes = featurize_molecules(smiles, processor)
    rows = [DroppedRow(i, smiles[i], outcomes[i].failure) for i in range(len(smiles))]
    return encode_shard(
        rows,
        outcomes,
        num_nodes=count_nodes([outcome.features for outcome in outcomes[:-1]]),
        processor=describe_processor(processor),
        options={"shard_size": 7},
    )


def test_shard_tells_what_made_it_and_what_failed() -> None:
    header = read_shard_header(io.BytesIO(encode_tiny_shard()), name="tiny")
    assert header.schema.remove_metadata() == SHARD_SCHEMA
    assert header.num_rows == 6
    assert header.options == {"shard_size": 7}
    assert header.processor == describe_processor(RMatProcessor(geometry="bounds"))
    assert [(row.row, row.smiles) for row in header.failures] == [(6, "C1CC")]
    assert "ring" in header.failures[0].reason


def test_equal_molecules_give_equal_bytes() -> None:
    assert encode_tiny_shard() == encode_tiny_shard()


def test_processor_survives_its_description() -> None:
    processor = RMatProcessor(geometry="2d", molecule_descriptors=["MolWt"], max_atoms=9)
    processor.auto_map = {"AutoProcessor": "processing_rmat.RMatProcessor"}
    description = describe_processor(processor)
    assert "auto_map" not in description
    assert describe_processor(build_processor(description, source="test")) == description


def test_names_of_shards_sort_in_order() -> None:
    assert [name_shard(idx) for idx in (0, 12)] == ["part-00000.parquet", "part-00012.parquet"]


def test_difference_names_option_and_values() -> None:
    assert find_difference({"a": 1}, {"a": 1}) == ""
    assert find_difference({"a": 1}, {"a": 2}) == "a is 1 in one and 2 in the other"
    assert find_difference({"a": 1}, {}) == "a is 1 in one and null in the other"


def test_reasons_count_together_without_the_molecule() -> None:
    first, second = (
        generalize_reason(outcome.failure)
        for outcome in featurize_molecules(["C1CC", "CC2CCC"], RMatProcessor())
    )
    assert first == second
    long = featurize_molecules(["C" * 20, "C" * 30], RMatProcessor(max_atoms=5))
    assert len({generalize_reason(outcome.failure) for outcome in long}) == 1
