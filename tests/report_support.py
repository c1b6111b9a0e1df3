"""Evaluations made up of descriptors, with mistakes of every kind, for the tests of records and reports."""

import numpy as np
from PIL import Image

from rdcd_jax.benchmarks.disc import evaluate_descriptors, write_disc_results
from rdcd_jax.benchmarks.ground_truth import GroundTruth
from rdcd_jax.benchmarks.record import Measured, write_record
from rdcd_jax.benchmarks.settings import Settings
from rdcd_jax.embedding.descriptors import Descriptors

COPIES, DISTRACTORS, REFERENCES, DIM = 24, 6, 40, 32
# What a file name or a table of edits may hold.
HOSTILE = '<img src=x onerror="window.caught=1">\'&amp;'
HOSTILE_EDIT = '<b>"crop"</b>&'


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def made_up(*, seed=0, noise=0.3, first_query="Q0"):
    """Queries, references and their ground truth; every other copy was cropped, every third one blurred."""
    random = np.random.default_rng(seed)
    references = unit(random.standard_normal((REFERENCES, DIM)))
    copies = references[:COPIES] + noise * random.standard_normal((COPIES, DIM))
    others = random.standard_normal((DISTRACTORS, DIM))
    ids = [first_query, *(f"Q{i}" for i in range(1, COPIES + DISTRACTORS))]
    edits = {}
    for i, query in enumerate(ids):
        made = (*([HOSTILE_EDIT] if i % 2 == 0 else []), *(["blur2"] if i % 3 == 0 else []))
        if made:
            edits[query] = made
    pairs = tuple((query, f"R{i}") for i, query in enumerate(ids[:COPIES]))
    truth = GroundTruth("truth.csv", pairs, tuple(ids[COPIES:]), edits)
    queries = unit(np.concatenate([copies, others]))
    return queries, references, truth, ids


def evaluate(folder, *, model="toy", images=None, codecs=("Flat", "L2norm,Flat"), **made):
    """Writes an evaluation to a folder; gives its rows and predictions."""
    queries, references, truth, ids = made_up(**made)
    names = np.asarray([f"R{i}" for i in range(REFERENCES)])
    embedded = Descriptors(names, references, model)
    rows, predictions = evaluate_descriptors(
        Descriptors(np.asarray(ids), queries, model), embedded, None, truth, Settings(codecs, k=5)
    )
    write_disc_results(folder, rows, predictions)
    size = None if images is None else 16
    write_record(
        folder,
        rows,
        truth,
        embedded,
        queries=len(ids),
        measured=Measured("made up", images or {}, size, size is not None),
    )
    return rows, predictions


def save_images(root, *, first_query="Q0", seed=0):
    """Images of coloured noise for `made_up`'s ids; gives their sources."""
    random = np.random.default_rng(seed)
    ids = {
        "queries": [first_query, *(f"Q{i}" for i in range(1, COPIES + DISTRACTORS))],
        "references": [f"R{i}" for i in range(REFERENCES)],
    }
    for part, names in ids.items():
        (root / part).mkdir(parents=True)
        for name in names:
            pixels = random.integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((320, 240), Image.Resampling.NEAREST)
            image.save(root / part / f"{name}.jpg")
    return {part: str(root / part) for part in ids}
