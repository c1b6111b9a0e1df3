"""What the method does: trainings, evaluations and their tables."""
