import h5py
import numpy as np
import pytest

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import (
    Descriptors,
    id_array,
    read_descriptors,
    require_comparable,
    write_descriptors,
)

IDS = np.array(["R 1", "été", "写真"])
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("name", ["d.npz", "d.h5", "sub/d.HDF5"])
def test_what_is_written_is_read(tmp_path, name):
    write_descriptors(tmp_path / name, Descriptors(IDS, ROWS, "model-é"))
    found = read_descriptors(tmp_path / name)
    np.testing.assert_array_equal(found.ids, IDS)
    np.testing.assert_array_equal(found.descriptors, ROWS)
    assert found.model == "model-é"
    assert found.descriptors.dtype == np.float32
    assert found.ids.dtype.kind == "U"
    assert len(list((tmp_path / name).parent.iterdir())) == 1


def test_npz_holds_the_named_arrays(tmp_path):
    write_descriptors(tmp_path / "d.npz", Descriptors(IDS, ROWS, "m"))
    with np.load(tmp_path / "d.npz", allow_pickle=False) as file:
        assert set(file) == {"ids", "descriptors", "model", "fingerprint"}
        assert file["model"] == "m"


def test_h5_of_queries_and_references(tmp_path):
    path = tmp_path / "both.h5"
    with h5py.File(path, "w") as file:
        file["query"], file["reference"] = ROWS, ROWS[:2] + 1
        file["query_ids"] = IDS.astype(object)
        file["reference_ids"] = np.array([b"R1", b"R2"])
    np.testing.assert_array_equal(read_descriptors(path, "query").ids, IDS)
    references = read_descriptors(path, "reference")
    assert references.ids.tolist() == ["R1", "R2"]
    np.testing.assert_array_equal(references.descriptors, ROWS[:2] + 1)
    with pytest.raises(UserError, match=r"both\.h5: holds queries and references together"):
        read_descriptors(path)


@pytest.mark.parametrize("name", ["d.npz", "d.h5"])
@pytest.mark.parametrize(
    ("ids", "rows", "sentence"),
    [
        (IDS, np.where(ROWS == 5, np.nan, ROWS), "1 of 3 descriptors hold NaN.*été"),
        (IDS, np.where(ROWS == 5, np.inf, ROWS), "NaN or infinity"),
        (IDS, ROWS[0], "of shape"),
        (IDS[:0], ROWS[:0], "of shape"),
        (IDS[:2], ROWS, "3 descriptors need as many ids"),
        (IDS[[0, 1, 0]], ROWS, r"1 ids are repeated, such as R 1 \(2 times\)"),
    ],
)
def test_unsound_descriptors_are_neither_written_nor_read(tmp_path, name, ids, rows, sentence):
    path = tmp_path / name
    with pytest.raises(UserError, match=rf"d\.\w+: .*{sentence}"):
        write_descriptors(path, Descriptors(ids, rows, "m"))
    assert not path.exists()
    if name == "d.npz":
        np.savez(path, ids=ids, descriptors=rows, model="m")
    else:
        with h5py.File(path, "w") as file:
            file["vectors"], file["image_names"] = rows, [str(i).encode() for i in ids]
    with pytest.raises(UserError, match=sentence):
        read_descriptors(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no such descriptor file"):
        read_descriptors(tmp_path / "none.npz")
    with pytest.raises(UserError, match=r"d\.txt: .*\.npz or \.h5"):
        read_descriptors(tmp_path / "d.txt")
    for name in ("bad.npz", "bad.h5"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(UserError, match=rf"{name}: cannot be read"):
            read_descriptors(tmp_path / name)
    np.savez(tmp_path / "other.npz", x=ROWS)
    with pytest.raises(UserError, match="no ids and no descriptors"):
        read_descriptors(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", ids=IDS.astype(object), descriptors=ROWS)
    with pytest.raises(UserError, match=r"pickled\.npz: cannot be read"):
        read_descriptors(tmp_path / "pickled.npz")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = ROWS
    with pytest.raises(UserError, match=r"other\.h5: has neither .*; it has x"):
        read_descriptors(tmp_path / "other.h5")


def test_sets_of_different_models_are_not_compared():
    a, b = Descriptors(IDS, ROWS, "a"), Descriptors(IDS, ROWS, "b")
    with pytest.raises(UserError, match="q was embedded by 'a' and r by 'b'"):
        require_comparable({"q": a, "x": Descriptors(IDS, ROWS), "r": b})
    with pytest.raises(UserError, match="q holds 4-d descriptors and r 2-d"):
        require_comparable({"q": a, "r": Descriptors(IDS, ROWS[:, :2], "a")})
    require_comparable({"q": a, "r": Descriptors(IDS, ROWS)})


def test_weights_are_told_apart_by_their_fingerprint():
    a, other = Descriptors(IDS, ROWS, "a", "1"), Descriptors(IDS, ROWS, "a", "2")
    with pytest.raises(
        UserError, match=r"q was embedded by 'a' and r by 'a' \(other weights of that name\)"
    ):
        require_comparable({"q": a, "x": Descriptors(IDS, ROWS, "a"), "r": other})
    # One file may call them by a path, another by a name.
    require_comparable({"q": a, "r": Descriptors(IDS, ROWS, "/runs/a/export", "1")})
    with pytest.raises(UserError, match="q was embedded by 'a' and r by 'b'"):
        require_comparable({"q": a, "r": Descriptors(IDS, ROWS, "b")})


def test_a_model_s_name_may_be_bytes(tmp_path):
    np.savez(tmp_path / "a.npz", ids=IDS, descriptors=ROWS, model=np.bytes_("é".encode()))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["vectors"], file["image_names"] = ROWS, [name.encode() for name in IDS]
        file.attrs["model"] = np.bytes_("é".encode())
    for name in ("a.npz", "a.h5"):
        assert read_descriptors(tmp_path / name).model == "é"


def test_ids_that_are_no_text_are_refused(tmp_path):
    np.savez(tmp_path / "b.npz", ids=np.array([b"\xff1", b"\xff2", b"\xff3"]), descriptors=ROWS)
    with pytest.raises(UserError, match=r"b\.npz: cannot be read"):
        read_descriptors(tmp_path / "b.npz")


@pytest.mark.parametrize("factor", [1e300, 1e30, -1e30])
def test_numbers_too_large_to_compare_are_refused(tmp_path, factor):
    np.savez(tmp_path / "l.npz", ids=IDS, descriptors=(ROWS + 1).astype(np.float64) * factor)
    with pytest.raises(UserError, match=r"l\.npz: .*(beyond 1e\+15|NaN or infinity)"):
        read_descriptors(tmp_path / "l.npz")


def test_files_that_unpack_to_far_more_are_refused(tmp_path):
    many = np.ones((2**20, 32), np.float32)
    np.savez_compressed(tmp_path / "bomb.npz", ids=np.arange(2**20), descriptors=many)
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("vectors", (10**9, 64), "f4")
        file["image_names"] = IDS.astype(object)
    for name in ("bomb.npz", "bomb.h5"):
        with pytest.raises(UserError, match=rf"{name}: would unpack to \d+ MB"):
            read_descriptors(tmp_path / name)
    np.savez_compressed(tmp_path / "small.npz", ids=np.arange(2**10), descriptors=many[: 2**10])
    assert len(read_descriptors(tmp_path / "small.npz")) == 2**10


def test_one_long_id_costs_no_other_room(tmp_path):
    """A thousand characters among many ids: as wide as the longest, all would take 200 MB."""
    names = ["x" * 1000, *(f"é{i}" for i in range(50_000))]
    rows = np.ones((len(names), 2), np.float32)
    for suffix in (".npz", ".h5"):
        path = tmp_path / f"d{suffix}"
        write_descriptors(path, Descriptors(id_array(names), rows, "m"))
        assert path.stat().st_size < 4e6
        read = read_descriptors(path)
        assert read.ids.tolist() == names and read.ids.nbytes < 1e6
    # Ids of like length stay what numpy reads by itself.
    write_descriptors(tmp_path / "e.npz", Descriptors(id_array(names[1:]), rows[1:], "m"))
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["ids"].tolist() == names[1:]
