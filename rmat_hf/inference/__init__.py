"""Finetuned models at work: predictions and vectors of molecules, of files, of shards."""
