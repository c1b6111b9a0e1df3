import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rdcd_jax.benchmarks import builders
from rdcd_jax.benchmarks.builders import builder as builder_module
from rdcd_jax.benchmarks.builders.disc2021 import FINAL_GROUND_TRUTH_FILES
from rdcd_jax.benchmarks.ground_truth import (
    GROUND_TRUTH_FILES,
    QUERY_FOLDERS,
    REFERENCE_FOLDERS,
    TRAINING_FOLDERS,
)
from rdcd_jax.core.errors import UserError, one_line


def save(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        seed = sum(name.encode())
        pixels = np.random.default_rng(seed).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def make_disc(root, *, queries="queries", references="references", training="train", truth=None):
    save(root / queries, "Q00000.jpg", "Q00001.jpg", "Q00002.jpg")
    save(root / references, *(f"R{i:06d}.jpg" for i in range(5)))
    if training:
        save(root / training, "T000000.jpg", "T000001.png")
    name, text = truth or ("ground_truth.csv", "Q00000,R000003\nQ00001,\nQ00002,R000000\n")
    (root / name).write_text(text)
    return root


def rows(name, split, data_dir):
    source = tfds.data_source(
        name, split=split, data_dir=data_dir, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return {
        row["id"].decode(): (row["image"], [each.decode() for each in row["reference_ids"]])
        for row in source
    }


def splits_of(cls, root):
    return {name: list(split.images.ids) for name, split in cls.find_splits(root).items()}


def test_disc2021_is_written_and_read_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(builder_module, "SHARD_IMAGES", 2)
    root, stored = make_disc(tmp_path / "disc"), []
    done = builders.prepare(
        "disc2021", root, tmp_path / "tfds", on_progress=lambda *each: stored.append(each)
    )
    assert done.images == {"train": 2, "references": 5, "queries": 3} and not done.was_there
    assert [each for each in stored if each[0] == "references"] == [
        ("references", i, 5) for i in range(1, 6)
    ]
    shards = sorted(path.name for path in pathlib.Path(done.folder).glob("*references*"))
    assert shards == [f"disc2021-references.array_record-0000{i}-of-00003" for i in range(3)]
    read = rows("disc2021", "queries", tmp_path / "tfds")
    assert {id_: references for id_, (_, references) in read.items()} == {
        "Q00000": ["R000003"],
        "Q00001": [],
        "Q00002": ["R000000"],
    }
    read = rows("disc2021", "references", tmp_path / "tfds")
    assert list(read) == [f"R{i:06d}" for i in range(5)]
    for id_, (image, references) in read.items():
        assert image == (root / "references" / f"{id_}.jpg").read_bytes() and references == []
    assert "tensorflow" not in sys.modules
    again = builders.prepare("disc2021", root, tmp_path / "tfds")
    assert again.was_there and again.images == done.images


@pytest.mark.parametrize("below", ["", "images/"])
@pytest.mark.parametrize("i", range(len(GROUND_TRUTH_FILES)))
def test_disc2021_layouts(tmp_path, below, i):
    queries = QUERY_FOLDERS[i % len(QUERY_FOLDERS)]
    make_disc(
        tmp_path,
        queries=below + queries,
        references=below + REFERENCE_FOLDERS[i % len(REFERENCE_FOLDERS)],
        training=below + TRAINING_FOLDERS[i % len(TRAINING_FOLDERS)],
        truth=(GROUND_TRUTH_FILES[i], "query_id,reference_id\nQ00000,R000003\nQ00002,R000003\n"),
    )
    splits = builders.Disc2021.find_splits(tmp_path)
    split = "final_queries" if queries == "final_queries" else "queries"
    assert list(splits) == ["train", "references", split]
    assert splits[split].references == {"Q00000": ["R000003"], "Q00002": ["R000003"]}


@pytest.mark.parametrize("truth", FINAL_GROUND_TRUTH_FILES)
def test_disc2021_development_and_final_queries_lie_side_by_side(tmp_path, truth):
    make_disc(tmp_path, queries="dev_queries", training=None)
    save(tmp_path / "final_queries", "Q50000.jpg")
    with pytest.raises(UserError, match="no ground-truth file of final_queries; it may be called "):
        builders.Disc2021.find_splits(tmp_path)
    (tmp_path / truth).write_text("Q50000,R000001\n")
    splits = builders.Disc2021.find_splits(tmp_path)
    assert list(splits) == ["references", "queries", "final_queries"]
    assert splits["final_queries"].references == {"Q50000": ["R000001"]}
    assert splits["queries"].references == {"Q00000": ["R000003"], "Q00002": ["R000000"]}


def test_ndec(tmp_path):
    make_disc(
        tmp_path / "ndec",
        queries="query_images_h5",
        references="images/references",
        truth=("public_ground_truth_h5.csv", "Q00001,R000003\nQ00000,\n"),
    )
    done = builders.prepare("ndec", tmp_path / "ndec", tmp_path / "tfds")
    assert done.images == {"train": 2, "references": 5, "queries": 3}
    read = rows("ndec", "queries", tmp_path / "tfds")
    assert [references for _, references in read.values()] == [[], ["R000003"], []]


def make_copydays(root, original="original", strong="strong", jpeg="jpegqual", crops="crops"):
    save(root / original, "200000.jpg", "200100.jpg")
    save(root / strong, "200001.jpg", "200002.jpg", "200101.jpg")
    for folder in (f"{jpeg}/3", f"{jpeg}/15", f"{crops}/80"):
        save(root / folder, "200000.jpg", "200100.jpg")
    return root


def test_copydays(tmp_path):
    done = builders.prepare("copydays", make_copydays(tmp_path / "c"), tmp_path / "tfds")
    assert done.images == {
        "original": 2,
        "strong": 3,
        "jpegqual_3": 2,
        "jpegqual_15": 2,
        "crops_80": 2,
    }
    read = rows("copydays", "strong", tmp_path / "tfds")
    assert {id_: references for id_, (_, references) in read.items()} == {
        "200001": ["200000"],
        "200002": ["200000"],
        "200101": ["200100"],
    }
    read = rows("copydays", "jpegqual_15", tmp_path / "tfds")
    assert read["200100"] == (
        (tmp_path / "c" / "jpegqual" / "15" / "200100.jpg").read_bytes(),
        ["200100"],
    )


def test_copydays_layouts(tmp_path):
    names = ("copydays_original", "copydays_strong", "copydays_jpeg", "copydays_crop")
    make_copydays(tmp_path, *(f"images/{name}" for name in names))
    assert list(builders.Copydays.find_splits(tmp_path)) == [
        "original",
        "strong",
        "jpegqual_3",
        "jpegqual_15",
        "crops_80",
    ]


@pytest.mark.parametrize(
    ("cls", "make", "says"),
    [
        (builders.Disc2021, lambda r: save(r / "train", "T.jpg"), "no reference folder; it may be"),
        (
            builders.Disc2021,
            lambda r: save(r / "references", "R.jpg"),
            "no query folder; .*dev_queries, .*test_queries",
        ),
        (
            builders.Disc2021,
            lambda r: [save(r / each, "R.jpg") for each in ("references", "queries")],
            "no ground-truth file of queries; .*dev_ground_truth.csv",
        ),
        (builders.Disc2021, lambda r: make_disc(r, truth=("gt_1k.csv", "Q7,R000000")), "Q7"),
        (
            builders.Disc2021,
            lambda r: save(make_disc(r) / "dev_queries", "Q7.jpg"),
            "more than one folder of queries: queries, dev_queries",
        ),
        (
            builders.Disc2021,
            lambda r: (make_disc(r) / "images" / "train").mkdir(parents=True),
            "more than one training folder: train, images/train",
        ),
        (
            builders.Disc2021,
            lambda r: (make_disc(r, training=None) / "train").mkdir(),
            "train: no images found",
        ),
        (builders.Ndec, lambda r: save(r / "references", "R.jpg"), "query_images_h5"),
        (
            builders.Ndec,
            lambda r: [save(r / each, "1.jpg") for each in ("queries", "references")],
            "no ground-truth file; .*public_ground_truth_h5.csv",
        ),
        (builders.Copydays, lambda r: save(r / "strong", "2.jpg"), "no folder of originals"),
        (builders.Copydays, lambda r: save(r / "original", "2.jpg"), "no folder of copies; .*crop"),
        (
            builders.Copydays,
            lambda r: save(make_copydays(r) / "strong", "300001.jpg"),
            r"300001.jpg: no original's name starts with 3000",
        ),
        (
            builders.Copydays,
            lambda r: save(make_copydays(r) / "original", "200001.jpg"),
            "originals 200000 and 200001 start with the same 4",
        ),
        (
            builders.Copydays,
            lambda r: [save(r / each, "200000.jpg") for each in ("original", "crops")],
            "crops: holds no folder named by a number",
        ),
    ],
)
def test_wrong_trees_are_reported_in_one_sentence(tmp_path, cls, make, says):
    root = tmp_path / "download"
    make(root)
    with pytest.raises(UserError, match=says) as error:
        builders.prepare(cls.name, root, tmp_path / "tfds")
    assert str(root) in str(error.value)
    assert not list((tmp_path / "tfds").rglob("*.*record*"))


def test_a_missing_or_empty_folder_is_reported_what_belongs_there(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: is not a folder\. Unpack DISC2021 .*dev_queri"):
        builders.prepare("disc2021", tmp_path / "nowhere", tmp_path / "tfds")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: is empty\. Unpack Copydays .*jpegqual") as error:
        builders.prepare("copydays", tmp_path / "empty", tmp_path / "tfds")
    assert one_line(str(error.value)) == str(error.value)
    with pytest.raises(UserError, match="'imagenet': use disc2021, ndec, copydays"):
        builders.prepare("imagenet", tmp_path, tmp_path / "tfds")


def test_an_image_that_cannot_be_read_leaves_nothing_behind(tmp_path):
    root = make_disc(tmp_path / "disc")
    (root / "queries" / "Q00002.jpg").unlink()
    (root / "queries" / "Q00002.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(OSError, match="Q00002.jpg"):
        builders.prepare("disc2021", root, tmp_path / "tfds")
    assert not list((tmp_path / "tfds").rglob("*record*"))
    (root / "queries" / "Q00002.jpg").unlink()
    save(root / "queries", "Q00002.jpg")
    assert builders.prepare("disc2021", root, tmp_path / "tfds").images["queries"] == 3


def test_a_full_disk_is_reported_and_leaves_nothing_behind(tmp_path):
    """A limit on the size of files stands for a disk that fills."""
    root = make_disc(tmp_path / "disc")
    noise = np.random.default_rng(0).bytes(1 << 20)
    (root / "train" / "T000000.jpg").write_bytes(noise)
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))
from rdcd_jax.benchmarks import builders
try:
    builders.prepare("disc2021", {str(root)!r}, {str(tmp_path / "tfds")!r})
except builders.preparation.UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot be written (" in done.stdout and "make room" in done.stdout
    assert not list((tmp_path / "tfds").rglob("*record*"))


def test_the_builders_are_registered_and_not_loaded_early():
    assert {"disc2021", "ndec", "copydays"} <= set(
        tfds.list_builders(with_community_datasets=False)
    )
    code = "import sys, rdcd_jax, rdcd_jax.cli, rdcd_jax.images.sources as s"
    code += "; print('tensorflow_datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


HAS_BEAM = importlib.util.find_spec("apache_beam") is not None


@pytest.mark.skipif(HAS_BEAM, reason="Apache Beam is installed")
def test_beam_must_be_installed_to_be_asked_for(tmp_path):
    with pytest.raises(UserError, match="Apache Beam is not installed: pip install apache-beam"):
        builders.prepare("disc2021", make_disc(tmp_path), tmp_path / "t", beam_options="")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not HAS_BEAM, reason="needs Apache Beam")
def test_beam_writes_the_same_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(builder_module, "SHARD_IMAGES", 2)
    root = make_disc(tmp_path / "disc")
    # More than ten shards of which the last is shorter, which tfds alone would mix up.
    save(root / "references", *(f"R{i:06d}.jpg" for i in range(23)))
    builders.prepare("disc2021", root, tmp_path / "alone")
    options = "--runner=DirectRunner --direct_num_workers=1"
    done = builders.prepare("disc2021", root, tmp_path / "beam", beam_options=options)
    assert done.images == {"train": 2, "references": 23, "queries": 3}
    for split in done.images:
        assert rows("disc2021", split, tmp_path / "beam") == rows(
            "disc2021", split, tmp_path / "alone"
        )
