"""Ways to divide a table into train, valid and test; `registry` lists them."""
