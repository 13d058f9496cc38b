"""Ways to split a table into train, valid and test."""
