"""What the studies count as found."""

from PIL import Image

from experiments.studies.found import found_by
from rdcd_jax.images.sources import find_images
from rdcd_jax.index import Index


def test_copies_from_the_threshold_on_are_found_and_all_matches_ranked(tmp_path):
    paths = find_images("sample:references").paths
    index = Index.build(tmp_path / "x", paths[:8], model="rdcd-effb0-64")
    queries = tmp_path / "queries"
    queries.mkdir()
    for i in (0, 3, 5):
        Image.open(paths[i]).convert("RGB").save(queries / f"Q{i}.jpg", quality=50)
    Image.open(paths[20]).convert("RGB").save(queries / "D.jpg")
    copies = [(f"Q{i}", f"R{i:06d}") for i in (0, 3, 5)]
    # The last is no copy, so it is below the threshold; it is among the matches all the same.
    pairs = [*copies, ("D", "R000002")]
    found = found_by(index, find_images(queries), pairs, variants=())
    assert (found.recall, found.precision, found.distractors) == (75, 100, 0)
    assert 75 < found.average_precision < 100
    # With its pair unknown, the third query is one that has no copy.
    assert found_by(index, find_images(queries), copies[:2], variants=()).distractors == 1
