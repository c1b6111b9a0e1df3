import pytest

from rdcd_jax.benchmarks.ground_truth import (
    GROUND_TRUTH_FILES,
    find_disc_layout,
    find_ndec_layout,
    read_ground_truth,
    require_known_ids,
)
from rdcd_jax.core.errors import UserError

LINES = "Q1,R1\nQ2,\nQ3,R1\nQ3,R 2é\nQ4\n"


@pytest.mark.parametrize(
    "start", ["", "query_id,reference_id\n", "\ufeffquery_id,reference_id\r\n"]
)
def test_with_and_without_header(tmp_path, start):
    path = tmp_path / "gt.csv"
    path.write_text(start + LINES, encoding="utf-8")
    truth = read_ground_truth(path)
    assert truth.pairs == (("Q1", "R1"), ("Q3", "R1"), ("Q3", "R 2é"))
    assert truth.distractors == ("Q2", "Q4")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no pair"),
        ("query_id,reference_id\nQ1,\n", "holds no pair"),
        ("Q1,R1\nQ2,R2\nQ1,R1\n", "line 3: the pair Q1,R1 was given in line 1"),
        ("Q1,R1,0.5\n", "line 1: 'Q1,R1,0.5' is not query_id,reference_id"),
        (",R1\n", "line 1"),
        ("Q1;R1\nQ2;R2\n", "holds no pair.*separated by ';'; use commas"),
        ("query_id\treference_id\nQ1\tR1\n", r"holds no pair.*separated by '\\t'; use commas"),
        (
            "Q2,R2\nQ1,R1\nQ1,\n",
            "line 2: Q1 is a copy of R1, and in another line a copy of nothing",
        ),
    ],
)
def test_other_ground_truths_are_refused(tmp_path, text, sentence):
    path = tmp_path / "gt.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"gt\.csv.*{sentence}"):
        read_ground_truth(path)


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: cannot be read"):
        read_ground_truth(tmp_path / "none.csv")
    # A device would be read for ever.
    (tmp_path / "device.csv").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"device\.csv: cannot be read"):
        read_ground_truth(tmp_path / "device.csv")
    (tmp_path / "gt.csv").write_bytes(b"\xff\xfe\x00,\x81")
    with pytest.raises(UserError, match=r"gt\.csv: cannot be read"):
        read_ground_truth(tmp_path / "gt.csv")


def test_unknown_ids_are_named(tmp_path):
    path = tmp_path / "gt.csv"
    path.write_text(LINES)
    truth = read_ground_truth(path)
    references = ["R1", "R 2é", "R3"]
    require_known_ids(truth, ["Q1", "Q2", "Q3", "Q4"], references)
    with pytest.raises(
        UserError, match=r"2 of the 4 queries named are not among the 2 given .Q3, Q4"
    ):
        require_known_ids(truth, ["Q1", "Q2"], references)
    with pytest.raises(UserError, match=r"1 of the 2 references .* .R 2é"):
        require_known_ids(truth, ["Q1", "Q2", "Q3", "Q4"], ["R1"])


@pytest.mark.parametrize("below", [".", "images"])
@pytest.mark.parametrize("name", GROUND_TRUTH_FILES)
def test_folder_layouts(tmp_path, below, name):
    for folder in ("dev_queries", "val_ref", "training"):
        (tmp_path / below / folder).mkdir(parents=True)
    (tmp_path / name).touch()
    layout = find_disc_layout(tmp_path)
    assert layout.queries == tmp_path / below / "dev_queries"
    assert layout.references == tmp_path / below / "val_ref"
    assert layout.training == tmp_path / below / "training"
    assert layout.ground_truth == tmp_path / name


def test_incomplete_and_ambiguous_layouts_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        find_disc_layout(tmp_path / "none")
    (tmp_path / "queries").mkdir()
    with pytest.raises(UserError, match="holds no reference folder; it may be called references"):
        find_disc_layout(tmp_path)
    (tmp_path / "references").mkdir()
    with pytest.raises(UserError, match="holds no ground-truth file"):
        find_disc_layout(tmp_path)
    (tmp_path / "gt_1k.csv").touch()
    assert find_disc_layout(tmp_path).training is None
    (tmp_path / "dev_queries").mkdir()
    with pytest.raises(UserError, match="more than one query folder: queries, dev_queries"):
        find_disc_layout(tmp_path)


@pytest.mark.parametrize("below", [".", "images"])
def test_ndec_beside_discs_own_queries(tmp_path, below):
    for folder in ("references", "queries", "train"):
        (tmp_path / folder).mkdir()
    (tmp_path / "ground_truth.csv").touch()
    plain = find_ndec_layout(tmp_path)
    assert plain == find_disc_layout(tmp_path)
    (tmp_path / below / "query_images_h5").mkdir(parents=True)
    (tmp_path / below / "public_ground_truth_h5.csv").touch()
    layout = find_ndec_layout(tmp_path)
    assert layout.queries == tmp_path / below / "query_images_h5"
    assert layout.ground_truth == tmp_path / below / "public_ground_truth_h5.csv"
    assert layout.references == plain.references and layout.training == plain.training
    with pytest.raises(UserError, match="there is no such folder"):
        find_ndec_layout(tmp_path / "none")


def test_edits_beside_the_ground_truth(tmp_path):
    path = tmp_path / "gt.csv"
    path.write_text("Q1,R1\nQ2,\n")
    assert read_ground_truth(path).edits == {}
    (tmp_path / "edits.csv").write_text("query_id,edits,other\nQ1,crop+blur,T1\nQ2,,\n")
    assert read_ground_truth(path).edits == {"Q1": ("crop", "blur"), "Q2": ()}
    # A file of the ground truth's own name goes before one that all in the folder share.
    (tmp_path / "gt.csv.edits").write_text("Q1\tR1\tC1+O2\n\nQ2\t\tS3\n")
    assert read_ground_truth(path).edits == {"Q1": ("C1", "O2"), "Q2": ("S3",)}


@pytest.mark.parametrize("text", ["", "time,changes\n1,2\n"])
def test_another_table_of_edits_is_left_alone(tmp_path, text):
    (tmp_path / "gt.csv").write_text("Q1,R1\n")
    (tmp_path / "edits.csv").write_text(text)
    assert read_ground_truth(tmp_path / "gt.csv").edits == {}


def test_edits_of_another_form_are_refused(tmp_path):
    (tmp_path / "gt.csv").write_text("Q1,R1\n")
    (tmp_path / "gt.csv.edits").write_text("Q1\tR1\tC1\nQ2\tC2\n")
    with pytest.raises(UserError, match=r"gt\.csv\.edits, line 2: has 2 cells and not 3"):
        read_ground_truth(tmp_path / "gt.csv")
    (tmp_path / "gt.csv.edits").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"gt\.csv\.edits: cannot be read as the queries' edits"):
        read_ground_truth(tmp_path / "gt.csv")
