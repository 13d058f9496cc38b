"""`rmat featurize`: its flags, and the corpus they ask for."""

from dataclasses import dataclass

from rmat_hf.data.corpus_input import CorpusOptions
from rmat_hf.data.corpus_shards import featurize_corpus
from rmat_hf.data.corpus_summary import CorpusReport
from rmat_hf.flags import declare_flag, declare_required, validate_flags
from rmat_hf.model.features_rmat import list_molecule_descriptor_names
from rmat_hf.model.geometry_rmat import ConformerFailure, Geometry
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import lock_output
from rmat_hf.training.arguments import DescriptorSet


@dataclass(kw_only=True)
class FeaturizationArguments:
    """Everything `run_featurization` needs to know; each field is a flag of `rmat featurize`."""

    input: str = declare_required(
        "CSV, SMI, SDF (each also .gz) or Parquet file, folder or glob of files of one kind, "
        "bundled name or Hub data set."
    )
    output_dir: str = declare_required("Folder to write; the same command again continues it.")
    revision: str | None = declare_flag(None, "Branch, tag or commit of a data set on the Hub.")
    split: str | None = declare_flag(None, "Split of a data set on the Hub that has several.")
    smiles_column: str = declare_flag("smiles", "Column with the SMILES.")
    geometry: Geometry = declare_flag("bounds", "Where distances come from.")
    on_conformer_failure: ConformerFailure = declare_flag(
        "raise", "Geometry to step down to when no conformer is found; 'raise' drops the row."
    )
    molecule_descriptors: DescriptorSet = declare_flag(
        "none", "Molecule descriptors to store, for example as labels of pretraining."
    )
    max_atoms: int = declare_flag(256, "Most heavy atoms of a molecule.", least=1)
    num_proc: int = declare_flag(1, "Processes that featurize.", least=0)
    shard_size: int = declare_flag(8192, "Rows of the input in one file.", least=1)
    max_rows: int | None = declare_flag(
        None, "First rows of the input to take. Default: all.", least=1
    )

    def __post_init__(self) -> None:
        """Raise a `ValueError` for an unknown choice or a number that is too small."""
        validate_flags(self)


def run_featurization(
    arguments: FeaturizationArguments, *, show_progress: bool = False
) -> CorpusReport:
    """Featurize an input to a folder of shards, for [`load_corpus`]."""
    processor = build_corpus_processor(arguments)
    with lock_output(arguments.output_dir):
        return featurize_corpus(
            arguments.input,
            arguments.output_dir,
            processor=processor,
            options=build_corpus_options(arguments),
            num_workers=arguments.num_proc,
            show_progress=show_progress,
        )


def build_corpus_processor(arguments: FeaturizationArguments) -> RMatProcessor:
    """Return the processor that the flags describe."""
    descriptors = None
    if arguments.molecule_descriptors == "rdkit_2d":
        descriptors = list_molecule_descriptor_names()
    return RMatProcessor(
        geometry=arguments.geometry,
        on_conformer_failure=arguments.on_conformer_failure,
        max_atoms=arguments.max_atoms,
        molecule_descriptors=descriptors,
    )


def build_corpus_options(arguments: FeaturizationArguments) -> CorpusOptions:
    """Return the choice of molecules that the flags describe."""
    return CorpusOptions(
        smiles_column=arguments.smiles_column,
        revision=arguments.revision,
        split=arguments.split,
        shard_size=arguments.shard_size,
        max_rows=arguments.max_rows,
    )
