"""Sets of images to descriptor files, resumed where they were ended."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from rdcd_jax.core import hosts
from rdcd_jax.core.files import require_writable
from rdcd_jax.embedding.descriptors import (
    Descriptors,
    descriptor_suffix,
    read_descriptors,
)
from rdcd_jax.embedding.on_beam import OnBeam, make_parts
from rdcd_jax.embedding.parts import (
    Embedded,
    Parts,
    drop_others,
    has_share,
    list_unreadable,
    open_parts,
)
from rdcd_jax.embedding.stream import EmbeddingModel, Unreadable
from rdcd_jax.images.given import images_of
from rdcd_jax.images.sources import ImageSet

# Called with what is being embedded, images done and images in all.
Progress = Callable[[str, int, int], None]


def embed_to_file(
    model: EmbeddingModel,
    images: str | os.PathLike | ImageSet,
    out: str | os.PathLike,
    *,
    batch_size: int = 32,
    process: tuple[int, int] | None = None,
    beam: OnBeam | None = None,
    on_progress: Progress | None = None,
) -> Embedded | None:
    """Embeds images and writes the descriptors, as many images as there may be.

    What is embedded lies in the folder `<out>.parts` until all is (see `parts`): the same call goes on with what
    is there, and several processes share the work.

    Args:
        model: the model.
        images: a source of images, or images found already.
        out: an `.npz` or `.h5` file. Where images are unreadable, `<out>.unreadable.txt` lists
            them, one sentence a line.
        batch_size: images at a time.
        process: this process's number, from 0, and the number of processes that share the work and know nothing of each
            other, and make no file anew that is there; for None those that joined (see `hosts`), all of which return
            when the file is there.
        beam: makes the parts on the machines of an Apache Beam pipeline, which see the same files.
        on_progress: called with the source, images done and in all, of this process's share; not of a pipeline.

    Returns:
        What the file holds; None where another process writes it, or has.

    Raises:
        UserError: no images, none readable, `out` of another kind, parts of another embedding beside it.
        OSError: `out` cannot be written.
    """
    # Reported before the images are embedded.
    descriptor_suffix(out)
    require_writable(out)
    images = images_of(images)
    if process is not None and not has_share(out, len(images), process):
        # It may be late, and the others be done.
        return None
    if process is None:
        hosts.require_same("The set of images", lambda: [images.fingerprint(), model.fingerprint])
        hosts.require_shared(pathlib.Path(out).parent)
    found = None
    with open_parts(out, model, images, process or _of_joined()) as parts:
        if beam is None:
            parts.fill(model, batch_size, report_as(on_progress, images.source))
        else:
            make_parts(parts, model.fingerprint, batch_size, beam)
        if process is None:
            hosts.wait("embedded")
        if process is not None or hosts.is_first():
            found = parts.join()
    if process is None:
        hosts.wait("descriptors written")
    return found


def _of_joined() -> tuple[int, int]:
    return jax.process_index(), jax.process_count()


@contextlib.contextmanager
def embedded_sets(
    model: EmbeddingModel,
    images: Mapping[str, ImageSet],
    out: pathlib.Path,
    batch_size: int,
    on_progress: Progress | None,
    *,
    keep: bool = True,
) -> Iterator[tuple[dict[str, Descriptors], dict[str, list[Unreadable]]]]:
    """Embeds the sets of a benchmark; whatever ends the block early, the same call need not embed them again.

    Processes that joined (see `hosts`) share the work, and get all of it.

    Args:
        model: the model.
        images: sets by name.
        out: folder for `descriptors/NAME.npz`, and for `unreadable.txt` where images were left out.
        batch_size: images at a time.
        on_progress: called with the set's name, images done and in all.
        keep: leaves the descriptors' files there after the block. Otherwise `out` is the caller's alone, and what lies
            there of another embedding that was ended early gives way, which is refused else.

    Yields:
        Descriptors and the images left out, by the sets' names.
    """
    hosts.require_same(
        "The set of images",
        lambda: [{n: each.fingerprint() for n, each in images.items()}, model.fingerprint],
    )
    hosts.require_shared(out)
    paths = {name: out / "descriptors" / f"{name}.npz" for name in images}
    with contextlib.ExitStack() as opened:
        parts: dict[str, Parts] = {}
        for name, each in images.items():
            require_writable(paths[name])
            if not keep and hosts.is_first():
                drop_others(paths[name], model, each)
        hosts.wait("others dropped")
        for name, each in images.items():
            parts[name] = opened.enter_context(open_parts(paths[name], model, each, _of_joined()))
        for name, each in parts.items():
            each.fill(model, batch_size, report_as(on_progress, name))
        hosts.wait("embedded")
        if hosts.is_first():
            left_out = {name: each.join(keep=True).unreadable for name, each in parts.items()}
            every = [each for some in left_out.values() for each in some]
            list_unreadable(out / "unreadable.txt", every)
        else:
            left_out = {name: each.left_out() for name, each in parts.items()}
        hosts.wait("descriptors written")
        embedded = {name: read_descriptors(path) for name, path in paths.items()}
        yield embedded, left_out
    hosts.wait("evaluated")
    if hosts.is_first():
        for each in parts.values():
            each.remove()
        if not keep:
            _remove_files(list(paths.values()))


def _remove_files(paths: Sequence[pathlib.Path]) -> None:
    for path in paths:
        path.unlink()
    with contextlib.suppress(OSError):  # Something else may lie there.
        paths[0].parent.rmdir()


def report_as(on_progress: Progress | None, name: str) -> Callable[[int, int], None]:
    """The callback of one set."""
    return lambda done, total: None if on_progress is None else on_progress(name, done, total)
