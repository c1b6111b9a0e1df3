"""What the benchmarks' builders share: images copied as they are into ArrayRecord shards, without TensorFlow."""

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import tensorflow_datasets as tfds

from rdcd_jax.benchmarks.ground_truth import read_ground_truth, require_known_ids
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.sources import ImageSet, find_images

# A million DISC images make 489 shards of some 200 MB: enough to spread, few enough to list.
SHARD_IMAGES = 2048

# Called with a split's name, images written and images in all.
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Split:
    """One split's images.

    Attributes:
        images: the images.
        references: ids of the images that one is a copy of, by its own id; none for an id left out.
    """

    images: ImageSet
    references: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


class ImageBuilder(tfds.core.ShardBasedBuilder):
    """Base of the benchmarks' builders: a subclass says which images make which split.

    Shards are written one after another, or wherever Apache Beam runs them where `DownloadConfig` names a
    `beam_runner`; either way a process holds one image at a time.
    """

    VERSION = tfds.core.Version("1.0.0")
    # What the dataset is, and where it comes from; set by subclasses.
    about: str
    homepage: str
    # Nothing is downloaded. tfds would look for checksums beside this file with a package it does not declare.
    url_infos: dict = {}
    # Reported how far writing has come; not with Beam, which writes elsewhere.
    on_progress: Progress | None = None

    def __init__(self, *, file_format: str = "array_record", **kwargs):
        super().__init__(file_format=file_format, **kwargs)

    @classmethod
    @abc.abstractmethod
    def find_splits(cls, root: pathlib.Path) -> dict[str, Split]:
        """Lists the images of each split.

        Args:
            root: the manual folder.

        Returns:
            Splits by name.

        Raises:
            UserError: a part that is missing, empty or ambiguous, or copies and originals that do not fit.
        """

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=self.about,
            homepage=self.homepage,
            # Images keep their folder's order, so that a shard is found again by its ids.
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(doc="the file's name without its extension"),
                    "image": tfds.features.Image(doc="the file's bytes, unchanged"),
                    "reference_ids": tfds.features.Sequence(
                        tfds.features.Text(), doc="what the image is a copy of, if anything"
                    ),
                }
            ),
        )

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        # Split by split, and with lengths of our own: under Beam, tfds 4.9.10 writes the earlier splits again with each
        # split, and takes shard 10's length for shard 2's.
        infos = []
        for name, split in self.find_splits(pathlib.Path(dl_manager.manual_dir)).items():
            if split.images.reader is not None:
                raise UserError(
                    f"{split.images.source}: holds packed images; a benchmark is prepared from its own files."
                )
            starts = range(0, len(split.images), SHARD_IMAGES)
            self._shards = {name: [_Shard(name, split, i, self.on_progress) for i in starts]}
            super()._download_and_prepare(dl_manager, download_config)
            lengths = [len(shard) for shard in self._shards[name]]
            infos.append(self.info.splits[name].replace(shard_lengths=lengths))
        self.info.set_splits(tfds.core.splits.SplitDict(infos))

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list["_Shard"]]:
        return self._shards


class _Shard:
    """The images of one shard, as tfds asks for them."""

    def __init__(self, name: str, split: Split, start: int, on_progress: Progress | None):
        # Only its own part, since Beam sends it to another machine.
        part = slice(start, start + SHARD_IMAGES)
        self._rows = [
            (id_, path, list(split.references.get(id_, ())))
            for id_, path in zip(split.images.ids[part], split.images.paths[part], strict=True)
        ]
        self._name, self._start, self._total = name, start, len(split.images)
        self._on_progress = on_progress

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self) -> Iterator[tuple[str, dict]]:
        for i, (id_, path, references) in enumerate(self._rows, start=1):
            # By path, since tfds keeps a shard's examples until the shard is written.
            yield id_, {"id": id_, "image": path, "reference_ids": references}
            if self._on_progress is not None:
                self._on_progress(self._name, self._start + i, self._total)


def query_split(folder: pathlib.Path, ground_truth: pathlib.Path, references: Split) -> Split:
    """Queries with what the ground truth says of them.

    Args:
        folder: the queries' images.
        ground_truth: a CSV file, see `read_ground_truth`.
        references: the reference images.

    Returns:
        The split.

    Raises:
        UserError: no images, or a ground truth that is broken or names images that are not there.
    """
    images, truth = find_images(folder), read_ground_truth(ground_truth)
    require_known_ids(truth, images.ids, references.images.ids)
    copies: dict[str, list[str]] = {}
    for query, reference in truth.pairs:
        copies.setdefault(query, []).append(reference)
    return Split(images, copies)
