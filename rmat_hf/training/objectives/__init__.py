"""What pretraining learns from."""
