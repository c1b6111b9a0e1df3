"""NDEC: queries with hard negatives for DISC2021's references."""

import pathlib

from rdcd_jax.data.sources import find_images
from rdcd_jax.datasets.builder import PictureBuilder, Split, query_split
from rdcd_jax.evaluation.ground_truth import (
    GROUND_TRUTH_FILES,
    QUERY_FOLDERS,
    REFERENCE_FOLDERS,
    TRAINING_FOLDERS,
    find_part,
)

NDEC_QUERY_FOLDERS = ("query_images_h5", *QUERY_FOLDERS)
NDEC_GROUND_TRUTH_FILES = ("public_ground_truth_h5.csv", *GROUND_TRUTH_FILES)


class Ndec(PictureBuilder):
    """Builder of `ndec`: splits queries, references and train; the latter two are DISC2021's.

    Source: https://github.com/WangWenhao0716/ASL, arXiv 2205.12358.
    """

    name = "ndec"
    about = "NDEC: DISC2021's references with queries of which half are hard negatives."
    homepage = "https://github.com/WangWenhao0716/ASL"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    Unpack NDEC's queries (https://github.com/WangWenhao0716/ASL) into the manual folder and link to DISC2021's
    pictures. It or its images folder must hold
      * the queries in a folder called {", ".join(NDEC_QUERY_FOLDERS)};
      * their ground truth in a file called {", ".join(NDEC_GROUND_TRUTH_FILES)};
      * DISC2021's references R*.jpg in a folder called {", ".join(REFERENCE_FOLDERS)};
    and may hold DISC2021's training pictures T*.jpg in a folder called {", ".join(TRAINING_FOLDERS)}.
    """

    @classmethod
    def find_splits(cls, root: pathlib.Path) -> dict[str, Split]:
        """Splits by the folders found; queries with their ground truth. See the base."""
        queries = find_part(root, "query folder", NDEC_QUERY_FOLDERS)
        truth = find_part(root, "ground-truth file", NDEC_GROUND_TRUTH_FILES)
        references = Split(find_images(find_part(root, "reference folder", REFERENCE_FOLDERS)))
        splits = {"references": references, "queries": query_split(queries, truth, references)}
        training = find_part(root, "training folder", TRAINING_FOLDERS, required=False)
        return splits if training is None else {"train": Split(find_images(training)), **splits}
