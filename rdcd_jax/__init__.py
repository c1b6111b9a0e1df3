"""RDCD and SSCD in pure JAX: compact descriptors that find edited copies of images.

    import rdcd_jax as rdcd

    model = rdcd.load_model("rdcd-effb0-128")
    descriptors = model.embed(["a.jpg", "b.png"])
    index = rdcd.Index.build("photos.index", "photos/", model=model)
    for match in index.search("suspects/"):
        print(match.query, match.path, match.score, match.probability)
    groups = rdcd.find_duplicates("photos/")

Every name here is loaded when it is first used. What is not named here may change without notice.
"""

from typing import TYPE_CHECKING

from rdcd_jax.core.lazy import lazy_names

if TYPE_CHECKING:
    from rdcd_jax.benchmarks.disc_runs import evaluate_disc
    from rdcd_jax.core.errors import UserError
    from rdcd_jax.embedding.whitening import PCAWhitening
    from rdcd_jax.index.duplicates import Groups, find_duplicates
    from rdcd_jax.index.results import Match, Matches
    from rdcd_jax.index.search import Index
    from rdcd_jax.search.backends import knn
    from rdcd_jax.search.score_norm import apply_score_norm
    from rdcd_jax.training.loop import train_and_evaluate
    from rdcd_jax.weights.library import load_model
    from rdcd_jax.weights.model import Model
    from rdcd_jax.weights.shipped import list_models

__version__ = "0.2.0"

_HOMES = {
    "Groups": "rdcd_jax.index.duplicates",
    "Index": "rdcd_jax.index.search",
    "Match": "rdcd_jax.index.results",
    "Matches": "rdcd_jax.index.results",
    "Model": "rdcd_jax.weights.model",
    "PCAWhitening": "rdcd_jax.embedding.whitening",
    "UserError": "rdcd_jax.core.errors",
    "apply_score_norm": "rdcd_jax.search.score_norm",
    "evaluate_disc": "rdcd_jax.benchmarks.disc_runs",
    "find_duplicates": "rdcd_jax.index.duplicates",
    "knn": "rdcd_jax.search.backends",
    "list_models": "rdcd_jax.weights.shipped",
    "load_model": "rdcd_jax.weights.library",
    "train_and_evaluate": "rdcd_jax.training.loop",
}
__all__ = [
    "Groups",
    "Index",
    "Match",
    "Matches",
    "Model",
    "PCAWhitening",
    "UserError",
    "apply_score_norm",
    "evaluate_disc",
    "find_duplicates",
    "knn",
    "list_models",
    "load_model",
    "train_and_evaluate",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
