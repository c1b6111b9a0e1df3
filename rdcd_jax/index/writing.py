"""What changes an index: images that are added, embedded anew, dropped or moved."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import Descriptors, id_array
from rdcd_jax.embedding.stream import NOTHING, Part, Unreadable, embedded_parts
from rdcd_jax.images.folders import is_image_name
from rdcd_jax.images.given import Images, images_of
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.index import store
from rdcd_jax.index.changes import Changes, find_changes, require_paths, without_links
from rdcd_jax.index.manifest import Manifest
from rdcd_jax.index.places import HEIGHT, WIDTH, sizes, whole_path
from rdcd_jax.index.queries import embed_queries
from rdcd_jax.index.results import Added, Updated
from rdcd_jax.index.variants import PARTS
from rdcd_jax.weights.model import Model
from rdcd_jax.weights.onnx_model import OnnxModel

# Images that are embedded and put into the index at a time: what a build that is killed has to do again.
CHUNK = 4096
Progress = Callable[[int, int], None]


def listed(folder: pathlib.Path, manifest: Manifest, images: Images | None) -> ImageSet:
    """The images that an index is to hold: those given, or what it was built from.

    Raises:
        UserError: they cannot be listed, or the index does not know what it was built from.
    """
    ids = "path" if manifest.by_path else "name"
    if images is not None:
        return images_of(images, ids=ids).seen()
    if not manifest.sources:
        raise UserError(
            f"{folder} does not know what it was built from; name the images that it is to hold."
        )
    # An image alone that was deleted is what an update drops; where its folder is gone too, a disk may be missing.
    sources = [each for each in manifest.sources if not _is_deleted(each)] or manifest.sources
    try:
        return images_of(list(sources), ids=ids).seen()
    except UserError as error:
        raise UserError(
            f"{folder}: what it was built from cannot be listed: {error} If all of it was moved, say where (--root=);"
            " else name all that the index is to hold."
        ) from error


def _is_deleted(source: str) -> bool:
    """Whether a source is an image that is gone from a folder which is still there."""
    is_path = is_image_name(source) and os.path.isabs(source) and not os.path.lexists(source)
    folder = os.path.dirname(source)
    # A disk that is missing leaves an empty folder.
    return is_path and os.path.isdir(folder) and bool(os.listdir(folder))


def add_images(
    writer: store.Writer, model: Model | OnnxModel, found: ImageSet, on_progress: Progress | None
) -> Added:
    """Adds the images that are new; see `Index.add`."""
    segments = list(writer.segments())
    changes = without_links(find_changes(found, segments, writer.manifest.root), segments)
    # First: of what a killed one added, an update must know where it came from.
    sources = [*writer.manifest.sources, *found.sources]
    writer.change(sources=tuple(dict.fromkeys(sources)))
    ids = changes.ids(changes.new)
    added, unreadable = _embed_into(writer, model, changes, ids, on_progress)
    return Added(added, changes.present, unreadable, len(changes.changed))


def update_images(
    writer: store.Writer, model: Model | OnnxModel, found: ImageSet, on_progress: Progress | None
) -> Updated:
    """Makes an index hold these images; see `Index.update`."""
    segments = list(writer.segments())
    require_paths(writer.folder, segments)
    changes = find_changes(found, segments, writer.manifest.root)
    ids = changes.ids(sorted([*changes.new, *changes.changed]), changes.gone)
    embedded, unreadable = _embed_into(writer, model, changes, ids, on_progress)
    left_out = {each.id for each in unreadable}
    lost = [changes.stored[i] for i in changes.changed if ids[i] in left_out]
    removed = writer.remove([*changes.gone, *lost], by="paths") - len(lost)
    renewed = len(changes.changed) - len(lost)
    return Updated(
        embedded - renewed, renewed, removed, changes.present, unreadable, changes.images
    )


def moved(writer: store.Writer, root: str | os.PathLike) -> dict[str, object]:
    """The fields of the manifest of an index whose images lie below another folder now; see `Index.move`."""
    new, old = os.path.abspath(root), writer.manifest.root
    folder, manifest = writer.folder, writer.manifest
    if not os.path.isdir(new):
        raise UserError(f"{root}: there is no such folder; name the one that the images lie in.")
    if not old:
        raise UserError(
            f"{folder} keeps whole paths, since its images had no folder in common; name all that it is to hold, where"
            f" it lies now (index update {folder} SOURCE...)."
        )
    stored = [path for segment in writer.segments() for path in segment.paths]
    below = [whole_path(path, new) for path in stored if whole_path(path, new) != path]
    if below and not any(map(os.path.lexists, below)):
        raise UserError(
            f"{root}: none of the images of {folder} lies there, such as {below[0]}; name the folder that is now what"
            f" {old} was."
        )
    sources = [_moved_source(each, old, new) for each in manifest.sources]
    missing = [each for each in sources if os.path.isabs(each) and not os.path.lexists(each)]
    if missing:
        raise UserError(
            f"{missing[0]}: {folder} was built from it too, and it is not there; name all that the index is to hold"
            f" (index update {folder} SOURCE...)."
        )
    return {"root": new, "sources": tuple(sources)}


def _moved_source(source: str, old: str, new: str) -> str:
    """Where a source lies now that a folder has become another: below it, or, of the same names down to it, above."""
    if source == old or source.startswith(old + os.sep):
        return new + source[len(old) :]
    below = old.removeprefix(source)
    above = old.startswith(source + os.sep) and new.endswith(below) and not os.path.lexists(source)
    return new.removesuffix(below) if above else source


def _embed_into(
    writer: store.Writer,
    model: Model | OnnxModel,
    changes: Changes,
    ids: Mapping[int, str],
    on_progress: Progress | None,
) -> tuple[int, list[Unreadable]]:
    """Embeds the images at some positions, under their ids, and puts them in; gives how many, and those left out."""
    embedded, unreadable, positions = 0, [], sorted(ids)
    for start in range(0, len(positions), CHUNK):
        chunk = positions[start : start + CHUNK]
        names = tuple(ids[position] for position in chunk)

        def report(done: int, _: int, start: int = start) -> None:
            if on_progress is not None:
                on_progress(start + done, len(positions))

        images = dataclasses.replace(changes.images.subset(chunk), ids=names)
        embed = _embed_with_parts if writer.manifest.parts else _embed
        part = embed(model, images, report)
        unreadable += part.unreadable
        if part.found is None:
            continue
        position_of = dict(zip(names, chunk, strict=True))
        readable = [position_of[name] for name in part.found.ids.tolist()]
        files = changes.files[readable]
        files[:, [WIDTH, HEIGHT]] = sizes(changes.images, readable)
        paths = [changes.stored[i] for i in readable]
        writer.add(part.found, paths, files, instead_of=set(paths) & changes.known.keys())
        embedded += len(readable)
    return embedded, unreadable


def _embed(model: Model | OnnxModel, images: ImageSet, on_progress: Progress) -> Part:
    """The images' descriptors."""
    (part,) = embedded_parts(model, images, on_progress=on_progress)
    return part


def _embed_with_parts(model: Model | OnnxModel, images: ImageSet, on_progress: Progress) -> Part:
    """The images' descriptors, each followed by those of its parts."""
    looks = embed_queries(model, images, ["crops"], on_progress=on_progress)
    unreadable, ids, rows = list(looks.unreadable), [], []
    for position in np.unique(looks.query).tolist():
        start, end = np.searchsorted(looks.query, [position, position + 1])
        name = images.ids[position]
        if looks.variant[start]:
            unreadable.append(Unreadable(name, f"{name}: {NOTHING}"))
            continue
        ids.append(name)
        found = looks.descriptors[start:end]
        # Parts that show nothing are left out there; the image stands in for them.
        rows.append(np.concatenate([found, np.tile(found[0], (1 + PARTS - len(found), 1))]))
    if not ids:
        return Part(None, unreadable)
    return Part(Descriptors(id_array(ids), np.concatenate(rows), model.name), unreadable)
