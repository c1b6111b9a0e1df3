"""What measured the figures in README and docs; run from the checkout as `python -m experiments.…`."""
