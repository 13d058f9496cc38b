"""Sizes and molecules that make a test run in milliseconds."""

TINY_ARCHITECTURE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_radial_basis": 8,
    "pooling_hidden_size": 16,
    "num_atom_contexts": 12,
    "num_descriptor_labels": 5,
}

TINY_SMILES = ["CCO", "c1ccccc1C(=O)O", "C", "CC(C)[NH3+].[Cl-]", "C#CCN1CCOCC1", "FC(F)(F)S(=O)=O"]
