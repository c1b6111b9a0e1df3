"""One self-contained HTML page of any number of evaluations."""
