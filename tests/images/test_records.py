"""Images in records: packed shards, and prepared data sets of tensorflow-datasets."""

import pathlib
import pickle
import shutil

import numpy as np
import pytest
from toy import make_images

from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.images import records
from rdcd_jax.images.pack import pack_images
from rdcd_jax.images.sources import changed, find_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("records") / "pictures", 10)


@pytest.fixture(scope="module")
def packed(folder):
    out = folder.parent / "packed"
    pack_images(folder, out, shards=3)
    return out


@pytest.fixture
def copy(packed, tmp_path):
    """Shards to be spoilt."""
    records._open_shard.cache_clear()
    return shutil.copytree(packed, tmp_path / "packed")


def shards_of(folder):
    return sorted(folder.glob("*.array_record"))


def test_packed_images_are_those_of_the_folder(folder, packed):
    images, want = find_images(packed), find_images(folder)
    assert images.ids == want.ids and len(images) == 10
    assert images.paths[4] == f"{shards_of(packed)[1]}:1"
    for position in range(10):
        assert images.read(position) == pathlib.Path(want.paths[position]).read_bytes()
    np.testing.assert_array_equal(images.decode(7), want.decode(7))
    assert images.decode(7, min_side_hint=12).size == (12, 12)
    again = pickle.loads(pickle.dumps(images))
    assert again == images and again.read(3) == want.read(3)


def test_subsets_keep_their_reader(packed):
    images = find_images(packed)
    some = images.subset([8, 2])
    assert some.ids == (images.ids[8], images.ids[2])
    assert [some.read(0), some.read(1)] == [images.read(8), images.read(2)]


def test_a_shard_and_a_pattern_are_sources_too(packed):
    images = find_images(packed)
    assert find_images(shards_of(packed)[1]).ids == images.ids[3:6]
    assert find_images(f"{packed}/pictures-0000[02]-*.array_record").ids == (
        *images.ids[:3],
        *images.ids[6:],
    )
    with pytest.raises(UserError, match=r"x\*\.array_record: there is no such"):
        find_images(packed / "x*.array_record")


def test_listing_opens_no_shard(copy):
    for shard in shards_of(copy):
        shard.write_bytes(bytes(shard.stat().st_size))
    assert len(find_images(copy)) == 10


def test_shards_beside_loose_images_are_refused(copy, folder):
    shutil.copy(next(folder.iterdir()), copy / "loose.jpg")
    with pytest.raises(UserError, match=r"pictures-00000.*loose images \(loose\.jpg\)"):
        find_images(copy)


def test_two_packs_of_the_same_ids_are_refused(packed, copy):
    (copy.parent / "both").mkdir()
    shutil.copytree(packed, copy.parent / "both" / "a")
    shutil.copytree(packed, copy.parent / "both" / "b")
    with pytest.raises(UserError, match="two images have the id 'T00000'"):
        find_images(copy.parent / "both")


def test_a_shard_cut_short_is_named(copy):
    shard = shards_of(copy)[1]
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(
        UserError, match=r"pictures-00001-of-00003\.array_record is cut short .*pack"
    ):
        find_images(copy)


def test_a_shard_that_is_gone_is_named(copy):
    shards_of(copy)[2].unlink()
    with pytest.raises(UserError, match=r"pictures-00002-of-00003\.array_record is missing"):
        find_images(copy)


def test_a_shard_that_goes_later_ends_the_work(copy):
    images = find_images(copy)
    shard = shards_of(copy)[0]
    shard.write_bytes(shard.read_bytes()[:70_000])
    with pytest.raises(UserError, match=r"pictures-00000-of-00003\.array_record is cut") as error:
        images.read(0)
    assert not isinstance(error.value, UnreadableImageError)
    shard.unlink()
    with pytest.raises(UserError, match=r"pictures-00000-of-00003\.array_record is cut.*gone"):
        images.read(0)


def test_one_flipped_bit_costs_one_image(copy, folder):
    shard = shards_of(copy)[0]
    content = bytearray(shard.read_bytes())
    image = sorted(folder.iterdir())[1].read_bytes()
    content[content.index(image) + 200] ^= 1
    shard.write_bytes(content)
    images = find_images(copy)
    with pytest.raises(UnreadableImageError, match=r"00000-of-00003\.array_record:1: .*pack"):
        images.decode(1)
    assert images.read(0) and images.read(2)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"ids": 1}', '{"ids": [1], "size": 1, "sha256": "", "unreadable": []}']
)
def test_a_damaged_index_is_named(copy, text):
    index = records.index_path(shards_of(copy)[0])
    index.write_text(text)
    with pytest.raises(UserError, match=r"array_record\.json is damaged"):
        find_images(copy)
    index.unlink()
    with pytest.raises(UserError, match=r"there is no index .*array_record\.json"):
        find_images(copy)


def test_fingerprints_report_what_changed(folder, packed, tmp_path):
    files, shards = find_images(folder).fingerprint(), find_images(packed).fingerprint()
    assert changed(files, files) == changed({}, files) == ""
    assert changed(files, shards) == "they lay in files, and now lie in shards"
    fewer = find_images(shards_of(packed)[0]).fingerprint()
    assert changed(shards, fewer) == "there were 10 images, and now there are 3"
    pack_images(folder, tmp_path / "small", shards=3, short_side=32)
    small = find_images(tmp_path / "small").fingerprint()
    assert "same ids, but their records (shards) hold" in changed(shards, small)
    turned = find_images(folder).subset(range(9, -1, -1)).fingerprint()
    assert "another order" in changed(files, turned)
    # The same shards elsewhere are the same set.
    shutil.copytree(packed, tmp_path / "moved")
    assert find_images(tmp_path / "moved").fingerprint() == shards


@pytest.fixture(scope="module")
def tfds_folder(folder, tmp_path_factory):
    """A prepared data set `toyset` with ids, and `plain` without."""
    tfds = pytest.importorskip("tensorflow_datasets")
    root = tmp_path_factory.mktemp("tfds")
    image = tfds.features.Image(encoding_format="jpeg")

    def prepare(called, features, examples):
        class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            name = called
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = root

            def _info(self):
                return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

            def _split_generators(self, _):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                yield from enumerate(examples)

        Toy(data_dir=root, file_format="array_record").download_and_prepare()

    contents = [(path.stem, path.read_bytes()) for path in sorted(folder.iterdir())]
    prepare(
        "toyset",
        {"id": tfds.features.Text(), "image": image},
        [{"id": id_, "image": content} for id_, content in contents],
    )
    prepare("plain", {"image": image}, [{"image": content} for _, content in contents[:3]])
    return root


def test_a_prepared_data_set_is_read_undecoded(folder, tfds_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    monkeypatch.setenv("RDCD_JAX_CACHE", str(tmp_path))
    images, want = find_images("tfds:toyset/train"), find_images(folder)
    assert sorted(images.ids) == list(want.ids)
    assert images.paths[0] == "tfds:toyset/train:0"
    images = pickle.loads(pickle.dumps(images))
    for position, id_ in enumerate(images.ids):
        assert images.read(position) == (folder / f"{id_}.jpg").read_bytes()
    assert images.decode(0).size == (48, 48)
    assert find_images("tfds:toyset/train").ids == images.ids
    assert find_images("tfds:plain/train").ids == ("0", "1", "2")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("tfds:toyset/test", "no split test; it has train"),
        ("tfds:nowhere/train", "nowhere not found .*TFDS_DATA_DIR"),
        ("tfds:mnist/train", "not prepared in .*tfds build mnist"),
        ("tfds:toyset", "tfds:NAME/SPLIT"),
        ("tfds:/", "tfds:NAME/SPLIT"),
    ],
)
def test_other_data_sets_are_refused(tfds_folder, monkeypatch, source, says):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    with pytest.raises(UserError, match=says) as error:
        find_images(source)
    assert source in str(error.value)
