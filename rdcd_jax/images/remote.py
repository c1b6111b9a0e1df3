"""Packed shards in a bucket, or behind any other address that fsspec knows: copied to the cache once, then read there.

    CACHE/buckets/DIGEST/       of an address: its shards with their indexes, as they lie there

Training reads images in any order, which buckets are slow at; a disk is not.
"""

import hashlib
import os
import pathlib
import shutil

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import cache_folder, write_aside
from rdcd_jax.core.locks import held
from rdcd_jax.images.records import index_path, is_shard, read_index


def fetched(address: str) -> pathlib.Path:
    """Copies what is missing of a folder of shards; gives the folder where all of them lie now.

    Args:
        address: of what `rdcd-jax data pack` wrote.

    Raises:
        UserError: it cannot be read, there are no shards, or one is cut short.
    """
    folder = (
        cache_folder() / "buckets" / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:32]
    )
    # Processes of one machine wait for the first.
    with held(folder / ".lock", None):
        try:
            _copy(address, folder)
        except (UserError, MemoryError):
            raise
        except ImportError as error:
            raise UserError(f"{address}: {error}") from error
        except Exception as error:
            # Each file system raises its own.
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(f"{address} cannot be read ({reason:.300}).") from error
    return folder


def _copy(address: str, folder: pathlib.Path) -> None:
    import fsspec

    system, root = fsspec.core.url_to_fs(address)
    there = {os.path.basename(path): path for path in system.ls(root, detail=False)}
    shards = sorted(name for name in there if is_shard(name))
    if not shards:
        raise UserError(
            f"{address} holds no packed shards; `rdcd-jax data pack` makes them of any source, to be put there."
        )
    for gone in folder.glob("*.array_record*"):
        if gone.name not in there:
            gone.unlink()
    for name in shards:
        shard, index = folder / name, index_path(name).name
        if index not in there:
            raise UserError(f"{address}: {index} is missing; put it beside its shard.")
        content = system.cat_file(there[index])
        here = index_path(shard)
        if shard.exists() and here.exists() and here.read_bytes() == content:
            continue
        # Never an index beside a shard that it is not of.
        here.unlink(missing_ok=True)
        with (
            write_aside(shard) as aside,
            system.open(there[name], "rb") as source,
            aside.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 2**22)
        with write_aside(here) as aside:
            aside.write_bytes(content)
        size, whole = shard.stat().st_size, read_index(shard).size
        if size != whole:
            here.unlink()
            raise UserError(f"{address}: {name} is cut short: {size} bytes instead of {whole}.")
