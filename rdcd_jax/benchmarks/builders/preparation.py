"""Preparing a benchmark: from the folders of its download to ArrayRecord shards."""

import contextlib
import dataclasses
import io
import os
import pathlib

import tensorflow_datasets as tfds

from rdcd_jax.benchmarks.builders.builder import Progress
from rdcd_jax.benchmarks.builders.copydays import Copydays
from rdcd_jax.benchmarks.builders.disc2021 import Disc2021
from rdcd_jax.benchmarks.builders.ndec import Ndec
from rdcd_jax.core.beam import parsed_options
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.records import tfds_folder

BUILDERS = {builder.name: builder for builder in (Disc2021, Ndec, Copydays)}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A benchmark that is ready to be read.

    Attributes:
        name: its name in tfds.
        folder: where its shards are.
        images: number of images by split.
        was_there: whether it had been prepared before, so that nothing was written now.
    """

    name: str
    folder: str
    images: dict[str, int]
    was_there: bool


def prepare(
    name: str,
    manual_dir: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    *,
    beam_options: str | None = None,
    on_progress: Progress | None = None,
) -> Prepared:
    """Writes a benchmark's images, bytes unchanged, into ArrayRecord shards that tfds reads.

    Args:
        name: disc2021, ndec or copydays.
        manual_dir: the folder that holds what was downloaded; the builder's
            `MANUAL_DOWNLOAD_INSTRUCTIONS` say what belongs there.
        data_dir: tfds's data folder; `records.tfds_folder` for None.
        beam_options: options of an Apache Beam pipeline, as on its command line, such as
            "--runner=FlinkRunner --flink_master=HOST:8081"; shards are then written wherever it runs. Without,
            this process writes them one by one.
        on_progress: called with a split's name, images written and in all; not with Beam.

    Returns:
        What is there now. A benchmark prepared earlier into `data_dir` is left as it is.

    Raises:
        UserError: an unknown name, a folder that lacks something, shards that cannot be written, or Beam asked for and
            not installed. Nothing is left of a data set that is not whole.
        OSError: an image's file that cannot be read; likewise.
    """
    if name not in BUILDERS:
        raise UserError(f"There is no data set {name!r}: use {', '.join(BUILDERS)}.")
    manual_dir = pathlib.Path(manual_dir)
    if not manual_dir.is_dir() or not any(manual_dir.iterdir()):
        what = "is empty" if manual_dir.is_dir() else "is not a folder"
        instructions = " ".join(BUILDERS[name].MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise UserError(f"{manual_dir}: {what}. {instructions}")
    beam = {} if beam_options is None else _beam(beam_options)
    builder = BUILDERS[name](data_dir=tfds_folder() if data_dir is None else data_dir)
    builder.on_progress = None if beam else on_progress
    was_there = bool(builder.info.splits)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False, **beam)
    try:
        # tfds prints that it downloads, which it does not.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=config)
    except RuntimeError as error:
        if beam:
            raise
        # What ArrayRecord raises for a full disk.
        raise UserError(
            f"{builder.data_dir} cannot be written ({error}); nothing is left of it; make room or give another data"
            " folder."
        ) from error
    images = {split: each.num_examples for split, each in builder.info.splits.items()}
    return Prepared(name, str(builder.data_dir), images, was_there)


def _beam(options: str) -> dict:
    parsed, runner = parsed_options(options)
    return {"beam_options": parsed, "beam_runner": runner}
