"""Damaged inputs by the thousand: `python -m experiments.fuzz`."""
