"""Copydays: holiday images and their attacked copies."""

import pathlib

from rdcd_jax.benchmarks.builders.builder import ImageBuilder, Split
from rdcd_jax.benchmarks.copydays_folder import (
    GRADED_FOLDERS,
    ORIGINAL,
    ORIGINAL_FOLDERS,
    START,
    STRONG_FOLDERS,
    find_blocks,
    originals_by_start,
    originals_of,
)
from rdcd_jax.images.sources import find_images


class Copydays(ImageBuilder):
    """Builder of `copydays`: splits original, strong, jpegqual_3 ... jpegqual_75 and crops_10 ... crops_80.

    Source: https://lear.inrialpes.fr/~jegou/data.php, Douze et al., CIVR 2009.
    """

    name = "copydays"
    about = "Copydays: 157 holiday images with JPEG, cropped and strongly attacked copies."
    homepage = "https://lear.inrialpes.fr/~jegou/data.php"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    Unpack Copydays (https://lear.inrialpes.fr/~jegou/data.php) into the manual folder. It or its images
    folder must hold
      * the originals in a folder called {", ".join(ORIGINAL_FOLDERS)};
    and at least one of
      * the strong attacks in a folder called {", ".join(STRONG_FOLDERS)};
      * one folder per JPEG quality (3, 5, ..., 75) in a folder called {", ".join(GRADED_FOLDERS["jpegqual"])};
      * one folder per strength of crop (10, 15, ..., 80) in a folder called {", ".join(GRADED_FOLDERS["crops"])}.
    A copy's file name starts with the same {START} characters as its original's.
    """

    @classmethod
    def find_splits(cls, root: pathlib.Path) -> dict[str, Split]:
        """Splits by folder; a copy is its original's by the start of its name. See the base."""
        blocks = {name: find_images(folder) for name, folder in find_blocks(root).items()}
        originals = blocks.pop(ORIGINAL)
        by_start = originals_by_start(originals.ids, originals.source)
        splits = {ORIGINAL: Split(originals)}
        for name, images in blocks.items():
            sources = originals_of(images.ids, images.paths, by_start)
            copies = {id_: [source] for id_, source in zip(images.ids, sources, strict=True)}
            splits[name.replace("/", "_")] = Split(images, copies)
        return splits
