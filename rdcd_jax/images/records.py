"""Images in record files: the shards of `rdcd-jax data pack`, and prepared data sets of tensorflow-datasets."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import threading
from collections.abc import Iterable, Sequence

from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.core.files import cache_folder, write_json

# Of the many shards of a large set, each reader keeps a file and its index open.
_MOST_OPEN = 512
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.array_record")
_TFDS_INFO = "dataset_info.json"
# What `rdcd-jax data prepare` makes, by the names that tfds knows.
BENCHMARKS = ("disc2021", "ndec", "copydays")
_PACK_AGAIN = "give the same `rdcd-jax data pack` command again, which makes that shard alone anew."


def is_shard(name: str) -> bool:
    """Whether a file of that name is one of records."""
    return ".array_record" in name and not name.endswith(".json") and not name.startswith(".")


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """What lies beside a shard, so that its images are listed without opening it.

    Attributes:
        ids: of its images, in order.
        size: of the shard in bytes.
        sha256: hex digest of the shard.
        unreadable: (id, reason) of the images of its part of the source that could not be read.
        files_sha256: hex digest of bytes and time of the last change of that part's files; empty where not known.
    """

    ids: tuple[str, ...]
    size: int
    sha256: str
    unreadable: tuple[tuple[str, str], ...] = ()
    files_sha256: str = ""


def ids_sha256(ids: Iterable[str]) -> str:
    """Hex digest of a list of ids."""
    return hashlib.sha256("".join(f"{id_}\n" for id_ in ids).encode()).hexdigest()


def index_path(shard: str | os.PathLike) -> pathlib.Path:
    """Where the index of a shard lies."""
    return pathlib.Path(f"{os.fspath(shard)}.json")


def write_index(shard: str | os.PathLike, index: ShardIndex) -> None:
    """Writes the index of a shard beside it."""
    write_json(
        index_path(shard), {**dataclasses.asdict(index), "ids_sha256": ids_sha256(index.ids)}
    )


def read_index(shard: str | os.PathLike) -> ShardIndex:
    """Reads the index of a shard.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = index_path(shard)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        index = ShardIndex(
            tuple(found["ids"]),
            found["size"],
            found["sha256"],
            tuple((id_, reason) for id_, reason in found["unreadable"]),
            found.get("files_sha256", ""),
        )
        if not isinstance(index.size, int) or not isinstance(index.sha256, str):
            raise TypeError("values of another type")
        if found["ids_sha256"] != ids_sha256(index.ids):
            raise ValueError("the ids have another checksum")
    except FileNotFoundError:
        raise UserError(
            f"{shard}: there is no index {path.name} beside it; only shards that `rdcd-jax data pack` wrote can be"
            " read by their path (and a data set of tensorflow-datasets as tfds:NAME/SPLIT)."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}); delete it and {_PACK_AGAIN}"
        ) from error
    return index


@dataclasses.dataclass(frozen=True)
class ShardReader:
    """Reads the images of `data pack`'s shards by the paths SHARD:PLACE.

    Attributes:
        content: hex digest over the shards' own.
    """

    content: str
    kind = "shards"

    def __call__(self, path: str) -> bytes:
        """The bytes of the image at `path`."""
        shard, _, position = path.rpartition(":")
        reader, lock = _open_shard(shard, self.content)
        try:
            with lock:
                return reader.read([int(position)])[0]
        except (RuntimeError, IndexError) as error:
            raise UnreadableImageError(
                f"{path}: the record is damaged ({error}); {_PACK_AGAIN}"
            ) from error


@functools.lru_cache(_MOST_OPEN)
def _open_shard(shard: str, _: str):
    """The reader of a shard, and a lock for its users, since it keeps a position.

    A shard of other content at the same path is opened anew.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(shard, "readahead_buffer_size:0,max_parallelism:0")
    if not reader.ok():
        # Only reading tells why.
        try:
            reader.read([0])
            reason = "unknown"
        except (RuntimeError, IndexError) as error:
            reason = str(error)
        raise UserError(f"{shard} is cut short, damaged or gone ({reason}); {_PACK_AGAIN}")
    return reader, threading.Lock()


def list_shards(shards: Sequence[str]) -> tuple[list[str], list[str], ShardReader]:
    """Lists the images of shards from their indexes.

    Args:
        shards: paths of the shards.

    Returns:
        Ids and paths of all images in order, and what reads them.

    Raises:
        UserError: a shard is cut short or has no sound index.
    """
    ids, paths, digest = [], [], hashlib.sha256()
    for shard in shards:
        index = read_index(shard)
        size = os.path.getsize(shard)
        if size != index.size:
            raise UserError(
                f"{shard} is cut short or damaged: {size} bytes instead of {index.size}; {_PACK_AGAIN}"
            )
        ids += index.ids
        paths += [f"{shard}:{position}" for position in range(len(index.ids))]
        digest.update(index.sha256.encode())
    return ids, paths, ShardReader(digest.hexdigest())


def require_all_shards(folder: str, shards: Sequence[str]) -> None:
    """Refuses a folder that lacks some of the shards that their names (-00003-of-00008) count.

    Raises:
        UserError: naming one that is missing.
    """
    names = {os.path.basename(shard) for shard in shards}
    for name in sorted(names):
        if parts := _NUMBERED.fullmatch(name):
            stem, _, count = parts.groups()
            for number in range(int(count)):
                if (missing := shard_name(stem, number, int(count))) not in names:
                    raise UserError(
                        f"{folder}: {missing} is missing: packing has not ended, or the shard was lost; give the same"
                        " `rdcd-jax data pack` command again, which makes only what is missing."
                    )


def shard_name(stem: str, number: int, count: int) -> str:
    """File name of one of `count` shards."""
    return f"{stem}-{number:05d}-of-{count:05d}.array_record"


@dataclasses.dataclass(frozen=True)
class TfdsReader:
    """Reads the images of a prepared tensorflow-datasets data set by the paths tfds:NAME/SPLIT:PLACE.

    Attributes:
        folder: where the prepared data set lies, with its version.
        split: such as train.
        feature: name of the feature that holds the image.
        content: hex digest over the names and sizes of the shards.
    """

    folder: str
    split: str
    feature: str
    content: str
    kind = "tfds"

    def __call__(self, path: str) -> bytes:
        """The bytes of the image at `path`."""
        position = int(path.rpartition(":")[2])
        source, lock = _open_tfds(self)
        try:
            with lock:
                return source[position][self.feature]
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            raise UnreadableImageError(
                f"{path}: the record is damaged ({error}); prepare the data set in {self.folder} again."
            ) from error


@functools.lru_cache
def _open_tfds(reader: TfdsReader):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(reader.folder).as_data_source(
        reader.split, decoders={reader.feature: tfds.decode.SkipDecoding()}
    )
    return source, threading.Lock()


def tfds_folder() -> str:
    """Where prepared data sets lie: `TFDS_DATA_DIR`, else where tensorflow-datasets keeps them."""
    # It reads the variable once, when it is imported.
    where = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    return os.path.expanduser(where)


def list_tfds(text: str) -> tuple[list[str], list[str], TfdsReader]:
    """Lists the images of tfds:NAME/SPLIT.

    An image's id is its text feature `id`, or else its position. Ids lie in the records, so a set is read
    through once; the cache folder keeps what was found.

    Args:
        text: the source. Prepared data sets are looked for in `tfds_folder`.

    Returns:
        Ids and paths of all images in order, and what reads them.

    Raises:
        UserError: there is no such prepared data set or split, or it is not of records with an image each.
    """
    import tensorflow_datasets as tfds

    name, _, split = text.removeprefix("tfds:").rpartition("/")
    if not name or not split:
        raise UserError(f"{text}: give a data set and its split, as tfds:NAME/SPLIT.")
    where = tfds_folder()
    benchmark = re.split("[/:]", name)[0]
    ours = benchmark in BENCHMARKS
    how = f"tfds build {name} --file_format=array_record"
    if ours:
        how = f"rdcd-jax data prepare {benchmark} --manual-dir=DOWNLOADS"
    try:
        # What this package prepares is read as it lies there, without the code that made it.
        prepared = not ours or any(pathlib.Path(where, benchmark).rglob(_TFDS_INFO))
        builder = tfds.builder(name, data_dir=where) if prepared else None
        # `is_prepared` would also log a warning where it is not.
        prepared = prepared and os.path.isfile(os.path.join(builder.data_path, _TFDS_INFO))
    except Exception as error:
        # Which of many, and with a list of a thousand data sets, depends on what is wrong with the name.
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{text}: {reason.rstrip('.') or type(error).__name__} (looked in {where}); prepare the data set there, or"
            " set TFDS_DATA_DIR to the folder that holds it."
        ) from error
    if not prepared:
        raise UserError(
            f"{text}: the data set is not prepared in {where}; prepare it there (`{how}`), or set TFDS_DATA_DIR to the"
            " folder that holds it."
        )
    folder = os.fspath(builder.data_path)
    if builder.info.file_format.value != "array_record":
        raise UserError(
            f"{text}: {folder} is prepared as {builder.info.file_format.value}; prepare it again as records"
            f" (`{how}`)."
        )
    if split not in builder.info.splits:
        there = ", ".join(builder.info.splits)
        raise UserError(f"{text}: the data set has no split {split}; it has {there}.")
    features = builder.info.features
    images = [key for key, each in features.items() if isinstance(each, tfds.features.Image)]
    if len(images) != 1:
        raise UserError(
            f"{text}: a record should hold one image, and those of {folder} hold {len(images)}."
        )
    files = builder.info.splits[split].filepaths
    content = hashlib.sha256()
    for file in files:
        try:
            size = os.path.getsize(file)
        except FileNotFoundError:
            raise UserError(
                f"{text}: the shard {file} is missing; prepare the data set again."
            ) from None
        content.update(f"{os.path.basename(file)} {size}\n".encode())
    reader = TfdsReader(folder, split, images[0], content.hexdigest())
    count = builder.info.splits[split].num_examples
    has_id = "id" in features and isinstance(features["id"], tfds.features.Text)
    ids = _tfds_ids(text, reader) if has_id else [str(position) for position in range(count)]
    return ids, [f"{text}:{position}" for position in range(count)], reader


def _tfds_ids(text: str, reader: TfdsReader) -> list[str]:
    stamp = os.path.getmtime(os.path.join(reader.folder, _TFDS_INFO))
    key = hashlib.sha256(f"{reader!r} {stamp}".encode()).hexdigest()[:32]
    kept = cache_folder() / "listings" / f"{key}.json"
    try:
        ids = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        source, _ = _open_tfds(reader)
        try:
            ids = [record["id"].decode() for record in source]
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{text}: a record is damaged ({error}); prepare the data set in {reader.folder} again."
            ) from error
        write_json(kept, ids)
    return ids
