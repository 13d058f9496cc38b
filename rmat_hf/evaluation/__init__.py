"""The accuracy benchmark: models, baselines and other tools on the same splits."""
