"""Copydays: holiday pictures and their attacked copies."""

import pathlib

from rdcd_jax.data.sources import find_images
from rdcd_jax.datasets.builder import PictureBuilder, Split
from rdcd_jax.errors import UserError
from rdcd_jax.evaluation.ground_truth import find_part

ORIGINAL_FOLDERS = ("original", "originals", "copydays_original")
STRONG_FOLDERS = ("strong", "copydays_strong")
# Each holds one folder per strength, named by its number.
GRADED_FOLDERS = {
    "jpegqual": ("jpegqual", "jpeg", "copydays_jpeg"),
    "crops": ("crops", "crop", "copydays_crop"),
}
# A copy's file name starts with as many characters of its original's.
BLOCK_CHARACTERS = 4


class Copydays(PictureBuilder):
    """Builder of `copydays`: splits original, strong, jpegqual_3 ... jpegqual_75 and crops_10 ... crops_80.

    Source: https://lear.inrialpes.fr/~jegou/data.php, Douze et al., CIVR 2009.
    """

    name = "copydays"
    about = "Copydays: 157 holiday pictures with JPEG, cropped and strongly attacked copies."
    homepage = "https://lear.inrialpes.fr/~jegou/data.php"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    Unpack Copydays (https://lear.inrialpes.fr/~jegou/data.php) into the manual folder. It or its images
    folder must hold
      * the originals in a folder called {", ".join(ORIGINAL_FOLDERS)};
    and at least one of
      * the strong attacks in a folder called {", ".join(STRONG_FOLDERS)};
      * one folder per JPEG quality (3, 5, ..., 75) in a folder called {", ".join(GRADED_FOLDERS["jpegqual"])};
      * one folder per strength of crop (10, 15, ..., 80) in a folder called {", ".join(GRADED_FOLDERS["crops"])}.
    A copy's file name starts with the same {BLOCK_CHARACTERS} characters as its original's.
    """

    @classmethod
    def find_splits(cls, root: pathlib.Path) -> dict[str, Split]:
        """Splits by folder; a copy is its original's by the start of its name. See the base."""
        originals = find_images(find_part(root, "folder of originals", ORIGINAL_FOLDERS))
        by_block: dict[str, str] = {}
        for id_ in originals.ids:
            other = by_block.setdefault(id_[:BLOCK_CHARACTERS], id_)
            if other != id_:
                raise UserError(
                    f"{originals.source}: the originals {other} and {id_} start with the same "
                    f"{BLOCK_CHARACTERS} characters, so their copies cannot be told apart; "
                    "leave Copydays' own pictures there."
                )
        strong = find_part(root, "folder of strong attacks", STRONG_FOLDERS, required=False)
        folders = {} if strong is None else {"strong": strong}
        for kind, names in GRADED_FOLDERS.items():
            graded = find_part(root, f"folder of {kind}", names, required=False)
            folders |= {} if graded is None else _graded(kind, graded)
        if not folders:
            known = [*STRONG_FOLDERS, *(name for each in GRADED_FOLDERS.values() for name in each)]
            raise UserError(
                f"{root}: holds no folder of copies; it may be called {', '.join(known)}."
            )
        copies = {name: _copies(folder, by_block) for name, folder in folders.items()}
        return {"original": Split(originals), **copies}


def _graded(kind: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    grades = [each for each in folder.iterdir() if each.is_dir() and each.name.isdecimal()]
    if not grades:
        raise UserError(f"{folder}: holds no folder named by a number, such as {folder / '20'}.")
    return {f"{kind}_{each.name}": each for each in sorted(grades, key=lambda each: int(each.name))}


def _copies(folder: pathlib.Path, by_block: dict[str, str]) -> Split:
    images = find_images(folder)
    for id_, path in zip(images.ids, images.paths, strict=True):
        if id_[:BLOCK_CHARACTERS] not in by_block:
            raise UserError(
                f"{path}: no original's name starts with {id_[:BLOCK_CHARACTERS]}; "
                "keep the file names of the download."
            )
    return Split(images, {id_: [by_block[id_[:BLOCK_CHARACTERS]]] for id_ in images.ids})
