"""NDEC: queries with hard negatives for DISC2021's references."""

import pathlib

from rdcd_jax.benchmarks.builders.builder import ImageBuilder, Split, query_split
from rdcd_jax.benchmarks.ground_truth import (
    NDEC_GROUND_TRUTH_FILES,
    NDEC_QUERY_FOLDERS,
    REFERENCE_FOLDERS,
    TRAINING_FOLDERS,
    find_ndec_layout,
)
from rdcd_jax.images.sources import find_images


class Ndec(ImageBuilder):
    """Builder of `ndec`: splits queries, references and train; the latter two are DISC2021's.

    Source: https://github.com/WangWenhao0716/ASL, arXiv 2205.12358.
    """

    name = "ndec"
    about = "NDEC: DISC2021's references with queries of which half are hard negatives."
    homepage = "https://github.com/WangWenhao0716/ASL"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    Unpack NDEC's queries (https://github.com/WangWenhao0716/ASL) into the manual folder and link to DISC2021's
    images. It or its images folder must hold
      * the queries in a folder called {", ".join(NDEC_QUERY_FOLDERS)};
      * their ground truth in a file called {", ".join(NDEC_GROUND_TRUTH_FILES)};
      * DISC2021's references R*.jpg in a folder called {", ".join(REFERENCE_FOLDERS)};
    and may hold DISC2021's training images T*.jpg in a folder called {", ".join(TRAINING_FOLDERS)}.
    """

    @classmethod
    def find_splits(cls, root: pathlib.Path) -> dict[str, Split]:
        """Splits by the folders found; queries with their ground truth. See the base."""
        layout = find_ndec_layout(root)
        references = Split(find_images(layout.references))
        queries = query_split(layout.queries, layout.ground_truth, references)
        splits = {"references": references, "queries": queries}
        if layout.training is None:
            return splits
        return {"train": Split(find_images(layout.training)), **splits}
