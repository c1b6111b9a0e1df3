"""Foreign checkpoints in, trained students out."""
