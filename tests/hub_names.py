"""Ids of the repositories that the tests publish."""

MODEL = "chemist/tiny-rmat"
PARTS = "chemist/tiny-parts"
PRIVATE = "chemist/tiny-secret"
DATA = "chemist/tiny-data"
