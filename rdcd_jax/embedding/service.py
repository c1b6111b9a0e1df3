"""Sets of images to descriptor files, resumed where they were ended."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from rdcd_jax.core.errors import one_line
from rdcd_jax.core.files import require_writable, write_text
from rdcd_jax.embedding.descriptors import (
    Descriptors,
    descriptor_suffix,
    read_descriptors,
)
from rdcd_jax.embedding.parts import Embedded, Parts, open_parts
from rdcd_jax.embedding.stream import DescribingModel, Unreadable
from rdcd_jax.images.sources import ImageSet, find_images

# Called with what is being described, pictures done and pictures in all.
Progress = Callable[[str, int, int], None]


def embed_to_file(
    model: DescribingModel,
    images: str | os.PathLike | ImageSet,
    out: str | os.PathLike,
    *,
    batch_size: int = 32,
    process: tuple[int, int] | None = None,
    on_progress: Progress | None = None,
) -> Embedded | None:
    """Describes pictures and writes the descriptors, as many pictures as there may be.

    What is described lies in the folder `<out>.parts` until all is (see `parts`): the same call goes on with what
    is there, and several processes share the work.

    Args:
        model: the model.
        images: a source of pictures, or pictures found already.
        out: an `.npz` or `.h5` file. Where pictures are unreadable, `<out>.unreadable.txt` lists
            them, one sentence a line.
        batch_size: pictures at a time.
        process: this process's number, from 0, and the number of processes that share the work; for None what JAX says.
        on_progress: told the source, pictures done and in all, of this process's share.

    Returns:
        What the file holds; None where another process will write it, or has.

    Raises:
        UserError: no pictures, none readable, `out` of another kind, parts of another embedding beside it.
        OSError: `out` cannot be written.
    """
    # Told before the pictures are described.
    descriptor_suffix(out)
    require_writable(out)
    images = images if isinstance(images, ImageSet) else find_images(images)
    process = process or (jax.process_index(), jax.process_count())
    with open_parts(out, model, images, process) as parts:
        parts.fill(model, batch_size, told_as(on_progress, images.source))
        found = parts.join()
    if found is not None:
        list_unreadable(pathlib.Path(f"{out}.unreadable.txt"), found.unreadable)
    return found


@contextlib.contextmanager
def described_sets(
    model: DescribingModel,
    images: Mapping[str, ImageSet],
    out: pathlib.Path,
    batch_size: int,
    on_progress: Progress | None,
) -> Iterator[tuple[dict[str, Descriptors], dict[str, list[Unreadable]]]]:
    """Describes the sets of a benchmark; whatever ends the block early, the same call need not describe them again.

    Args:
        model: the model.
        images: sets by name.
        out: folder for `descriptors/NAME.npz`, and for `unreadable.txt` where pictures were left out.
        batch_size: pictures at a time.
        on_progress: told the set's name, pictures done and in all.

    Yields:
        Descriptors and the pictures left out, by the sets' names.
    """
    # Kept, so that other codecs and normalisations need not describe everything again.
    paths = {name: out / "descriptors" / f"{name}.npz" for name in images}
    with contextlib.ExitStack() as opened:
        parts: dict[str, Parts] = {}
        for name, each in images.items():
            require_writable(paths[name])
            parts[name] = opened.enter_context(open_parts(paths[name], model, each, (0, 1)))
        for name, each in parts.items():
            each.fill(model, batch_size, told_as(on_progress, name))
        left_out = {name: each.join(keep=True).unreadable for name, each in parts.items()}
        described = {name: read_descriptors(path) for name, path in paths.items()}
        every = [each for some in left_out.values() for each in some]
        list_unreadable(out / "unreadable.txt", every)
        yield described, left_out
        for each in parts.values():
            each.remove()


def told_as(on_progress: Progress | None, name: str) -> Callable[[int, int], None]:
    """The callback of one set."""
    return lambda done, total: None if on_progress is None else on_progress(name, done, total)


def list_unreadable(path: pathlib.Path, unreadable: Sequence[Unreadable]) -> None:
    """Writes one sentence a line, or removes the list of an earlier run."""
    if unreadable:
        write_text(path, "".join(f"{one_line(each.reason)}\n" for each in unreadable))
    else:
        path.unlink(missing_ok=True)
