"""Data sets: tables, checked training data, splits."""
