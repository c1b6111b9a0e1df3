"""The bundled sample: its lists agree, its images open, and each is free and attributed."""

import csv
import pathlib
import re
from importlib import resources

import pytest
from PIL import Image

SAMPLE = pathlib.Path(str(resources.files("rdcd_jax") / "sample"))
FOLDERS = {"R": "references", "Q": "queries", "T": "train"}
FREE = {
    *("public-domain", "NASA-not-copyrighted", "Expat", "MIT", "CC0", "CC0-1", "CC0-1.0"),
    *("CC-BY-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0"),
    *("CC-BY-SA-1.0", "CC-BY-SA-2.0", "CC-BY-SA-2.5", "CC-BY-SA-3.0", "CC-BY-SA-3.0+"),
    *("CC-BY-SA-3.0-AU", "CC-BY-SA-4", "CC-BY-SA-4.0"),
}


def _table(name: str, **options) -> list[dict[str, str]]:
    with open(SAMPLE / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, **options))


@pytest.fixture(scope="module")
def sources() -> dict[str, dict[str, str]]:
    rows = _table("sources.tsv", delimiter="\t")
    by_name = {row["name"]: row for row in rows}
    assert len(by_name) == len(rows)
    return by_name


def test_counts_and_names_are_those_of_a_small_disc():
    counts = {}
    for letter, folder in FOLDERS.items():
        names = sorted(file.name for file in (SAMPLE / folder).iterdir())
        digits = 5 if letter == "Q" else 6
        assert names == [f"{letter}{i:0{digits}d}.jpg" for i in range(len(names))]
        counts[letter] = len(names)
    # Whitening a descriptor of 512 dimensions needs more training images than that.
    assert counts == {"R": 360, "Q": 160, "T": 800}


def test_the_whole_stays_under_eleven_and_a_half_megabytes():
    assert sum(file.stat().st_size for file in SAMPLE.rglob("*") if file.is_file()) < 11_500_000


def test_every_image_decodes_at_a_useful_size():
    for folder in FOLDERS.values():
        for file in (SAMPLE / folder).iterdir():
            with Image.open(file) as image:
                image.load()
                assert image.mode == "RGB" and 160 <= min(image.size) <= 192, file.name


def test_ground_truth_names_every_query_once_and_known_references(sources):
    truth = _table("ground_truth.csv")
    queries = [row["query_id"] for row in truth]
    assert queries == sorted(file.stem for file in (SAMPLE / "queries").iterdir())
    copies = [row for row in truth if row["reference_id"]]
    assert len(copies) >= 100 and len(truth) - len(copies) >= 20
    for row in copies:
        query, reference = sources[row["query_id"]], sources[row["reference_id"]]
        assert (query["package"], query["path"]) == (reference["package"], reference["path"])
    assert len({row["reference_id"] for row in copies}) == len(copies)


def test_distractors_and_training_images_are_in_no_other_set(sources):
    truth = {row["query_id"]: row["reference_id"] for row in _table("ground_truth.csv")}
    paths = [(row["package"], row["path"]) for name, row in sources.items() if not truth.get(name)]
    assert len(set(paths)) == len(paths)


def test_edits_list_every_query_and_its_second_picture():
    rows = _table("edits.csv")
    assert [row["query_id"] for row in rows] == [
        row["query_id"] for row in _table("ground_truth.csv")
    ]
    for row in rows:
        made = row["edits"].split("+")
        assert 1 <= len(made) <= 3 and all(made)
        assert bool(row["second_picture"]) == bool({"onto", "under"} & set(made))
        assert re.fullmatch(r"(T\d{6})?", row["second_picture"])


def test_every_image_has_a_source_with_a_free_licence_and_is_attributed(sources):
    files = {file.stem for folder in FOLDERS.values() for file in (SAMPLE / folder).iterdir()}
    assert files == set(sources)
    attribution = (SAMPLE / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for name, row in sources.items():
        assert set(row["licence"].split(" and ")) <= FREE, (name, row["licence"])
        assert row["package"] and row["version"] and row["path"] and row["kind"], name
        assert name in attribution and row["author"] in attribution, name
        for licence in row["licence"].split(" and "):
            assert f"* {licence}: " in attribution
            # Licences that ask for credit are no use without a name to credit.
            assert row["author"] or not licence.startswith("CC-BY"), name
