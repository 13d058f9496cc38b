"""Everything that travels with a checkpoint: the network, its configuration and the chemistry."""
