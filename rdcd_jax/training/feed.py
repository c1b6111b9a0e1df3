"""Batches on their way into the step: onto the devices, and into views where those are made there."""

import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from rdcd_jax.augment.device.mix import mixed
from rdcd_jax.augment.device.overlay import draw_atlas
from rdcd_jax.augment.device.views import make_device_view
from rdcd_jax.augment.policies import has_overlays, make_view
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.mesh import replicate, split_batch
from rdcd_jax.core.progress import Reporter
from rdcd_jax.core.rng import at_step, stream
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.method.objective import Objective
from rdcd_jax.method.step import Batch
from rdcd_jax.training.kept import Kept, Squash, keep_images
from rdcd_jax.training.pipeline import Batches, Views, Workers, make_batches
from rdcd_jax.training.record import UnreadableList


def source_size(config: ml_collections.ConfigDict) -> int:
    """Side of the squashed images that views are cut from on the device."""
    return config.data.source_size or 2 * config.image_size


def views_per_image(config: ml_collections.ConfigDict) -> int:
    """Two where a term compares views."""
    return 2 if Objective(**config.objective).compares_views else 1


def make_views(config: ml_collections.ConfigDict) -> Callable[[Batch, jax.Array], Batch] | None:
    """Makes what turns a batch as it arrives into one of views, inside the step; None where it arrives so.

    Returns:
        A function of a batch and the step's number. Random numbers follow from the run's seed and the step, so that a
        resumed run makes the views of an undisturbed one.
    """
    on_device = config.data.views == "device"
    mixes = config.data.mixup + config.data.cutmix > 0
    if not on_device and not mixes:
        return None
    key = stream(config.seed, "views")
    names = ("query", "key")[: views_per_image(config)]
    view = make_device_view(config.data.policy, config.image_size) if on_device else None

    def make(batch: Batch, step: jax.Array) -> Batch:
        mix_key, *keys = jax.random.split(at_step(key, step), 1 + len(names))
        batch = dict(batch)
        if on_device:
            if "pixels" in batch:
                position = batch["index"]
                image, aspect = batch["pixels"][position], batch["aspects"][position]
            else:
                image, aspect = batch["image"], batch["aspect"]
            for name, view_key in zip(names, keys, strict=True):
                batch[name] = view(image, aspect, batch.get("atlas"), view_key)
        if mixes:
            views, batch["targets"] = mixed(
                jnp.concatenate([batch["query"], batch["key"]]),
                mix_key,
                n_images=len(batch["query"]),
                mixup_probability=config.data.mixup,
                cutmix_probability=config.data.cutmix,
                alpha=config.data.mix_alpha,
            )
            batch["query"], batch["key"] = jnp.split(views, 2)
        return batch

    return make


def kept_images(config: ml_collections.ConfigDict, images: ImageSet) -> Kept | None:
    """The training set in memory, where the config asks for it."""
    if not config.data.keep:
        return None
    if config.data.keep == "device":
        _require_device_memory(images, source_size(config))
    with Reporter("Decoding", len(images), 0) as reporter:
        return keep_images(
            images,
            source_size(config),
            on_device=config.data.keep == "device",
            on_progress=lambda done, total: reporter.update(done),
        )


def _require_device_memory(images: ImageSet, size: int) -> None:
    """Refuses a training set that a device has no room for, before it is decoded."""
    needed = len(images) * size * size * 3
    for device in jax.local_devices():
        # A CPU's is the host's, which `keep_images` looks at.
        stats = device.memory_stats() or {}
        free = stats.get("bytes_limit", needed) - stats.get("bytes_in_use", 0)
        if needed > free:
            raise UserError(
                f"{images.source}: {len(images)} images of {size} x {size} take {needed / 1e9:.1f} GB, and the device"
                f" {device.device_kind} has {free / 1e9:.1f} free; set config.data.keep to 'host', or"
                " config.data.source_size lower."
            )


def read_batches(
    config: ml_collections.ConfigDict,
    images: ImageSet,
    kept: Kept | None,
    start_step: int,
    host: tuple[int, int],
) -> Batches:
    """The part of each batch from a step on that one of several hosts reads."""
    return make_batches(
        images,
        kept or _make_from_image(config),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        workers=Workers(0 if kept else config.data.workers),
        host=host,
    )


def _make_from_image(config: ml_collections.ConfigDict) -> Views | Squash:
    if config.data.views == "device":
        return Squash(source_size(config))
    return Views(make_view(config.data.policy, config.image_size), views_per_image(config))


def on_devices(
    batches: Batches,
    config: ml_collections.ConfigDict,
    images: ImageSet,
    kept: Kept | None,
    features_of: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None,
    mesh: Mesh,
    workdir: pathlib.Path,
) -> Iterator[Batch]:
    """Batches on their devices, one ahead of the step, with the teacher's features where the host has them.

    Lists the unreadable images that come by, see `record.UnreadableList`.
    """
    listing = UnreadableList(workdir)
    constant = {}
    first = next(batches)
    if "query" not in first and has_overlays(config.data.policy):
        constant["atlas"] = replicate(draw_atlas(), mesh)
    if kept and kept.on_device:
        constant["pixels"] = replicate(kept.pixels, mesh)
        constant["aspects"] = replicate(kept.aspects, mesh)

    def put(batch):
        listing.add(images.paths[position] for position in batch["unreadable"] if position >= 0)
        names = ("query", "key", "image", "aspect")
        arrays = {name: batch[name] for name in names if name in batch}
        arrays["index"] = batch["index"].astype(np.int32)
        if features_of is not None:
            arrays["teacher"] = features_of(batch)
        return {**split_batch(arrays, mesh), **constant}

    ahead = put(first)
    for batch in batches:
        current, ahead = ahead, put(batch)
        yield current
