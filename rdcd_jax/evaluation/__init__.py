"""Embedding, search, whitening, score normalisation, metrics and protocols."""
