"""DISC2021, the data set of the Image Similarity Challenge."""

import pathlib

from rdcd_jax.benchmarks.builders.builder import ImageBuilder, Split, query_split
from rdcd_jax.benchmarks.ground_truth import (
    GROUND_TRUTH_FILES,
    QUERY_FOLDERS,
    REFERENCE_FOLDERS,
    TRAINING_FOLDERS,
    find_part,
)
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.sources import find_images

FINAL_QUERY_FOLDERS = ("final_queries", "test_queries")
FINAL_GROUND_TRUTH_FILES = (
    "final_ground_truth.csv",
    "test_ground_truth.csv",
    "final_queries_groundtruth.csv",
    "test_queries_groundtruth.csv",
)
_DEV_QUERY_FOLDERS = tuple(name for name in QUERY_FOLDERS if name not in FINAL_QUERY_FOLDERS)


class Disc2021(ImageBuilder):
    """Builder of `disc2021`: splits train, references, queries (development) and final_queries.

    Source: https://ai.meta.com/datasets/disc21-dataset/, arXiv 2106.09672.
    """

    name = "disc2021"
    about = "DISC2021: edited copies to be found among a million images."
    homepage = "https://ai.meta.com/datasets/disc21-dataset/"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    Unpack DISC2021 (https://ai.meta.com/datasets/disc21-dataset/) into the manual folder, or link to where it
    lies. It or its images folder must hold
      * the references R*.jpg in a folder called {", ".join(REFERENCE_FOLDERS)};
      * the development queries Q*.jpg in a folder called {", ".join(_DEV_QUERY_FOLDERS)},
        and their ground truth in a file called {", ".join(GROUND_TRUTH_FILES)};
    and may hold
      * the training images T*.jpg in a folder called {", ".join(TRAINING_FOLDERS)};
      * the final queries in a folder called {", ".join(FINAL_QUERY_FOLDERS)},
        and their ground truth in a file called {", ".join(FINAL_GROUND_TRUTH_FILES)}.
    The final queries may also stand in place of the development queries. Images that were unpacked into several
    folders (references_0, references_1, ...) go into one, as folders or as links.
    """

    @classmethod
    def find_splits(cls, root: pathlib.Path) -> dict[str, Split]:
        """Splits by the folders found; queries with their ground truth. See the base."""
        references = Split(
            find_images(find_part(root, "reference folder", REFERENCE_FOLDERS)),
        )
        splits = {"references": references}
        for name, folders, files in (
            ("queries", _DEV_QUERY_FOLDERS, GROUND_TRUTH_FILES),
            ("final_queries", FINAL_QUERY_FOLDERS, FINAL_GROUND_TRUTH_FILES),
        ):
            folder = find_part(root, f"folder of {name}", folders, required=False)
            if folder is None:
                continue
            # Final queries alone are evaluated with whichever ground truth lies beside them.
            if name == "final_queries" and "queries" not in splits:
                files += GROUND_TRUTH_FILES
            truth = find_part(root, f"ground-truth file of {folder.name}", files)
            splits[name] = query_split(folder, truth, references)
        if len(splits) == 1:
            known = dict.fromkeys(_DEV_QUERY_FOLDERS + FINAL_QUERY_FOLDERS)
            raise UserError(f"{root}: holds no query folder; it may be called {', '.join(known)}.")
        training = find_part(root, "training folder", TRAINING_FOLDERS, required=False)
        return splits if training is None else {"train": Split(find_images(training)), **splits}
