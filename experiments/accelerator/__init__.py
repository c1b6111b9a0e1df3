"""What waits for an accelerator, in pieces of minutes."""
