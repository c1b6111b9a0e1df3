"""PCA and PCA whitening of descriptors, in faiss's convention. Numpy only."""

import dataclasses
import os

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_aside
from rdcd_jax.search.exact import rows_not_finite

_MAX_ROWS_PER_DIMENSION = 1000
_PERMUTATION_SEED = 1234
_BLOCK_ROWS = 16_384


@dataclasses.dataclass(frozen=True)
class PCAWhitening:
    """A fitted projection y = components (x - mean).

    Attributes:
        mean: [N_in] float64, the mean of the training rows.
        components: [dim, N_in] float64, the leading eigenvectors as rows; when whitening, each
            divided by the square root of its eigenvalue.
        eigenvalues: [N_in] float64, of the scatter matrix (a sum over rows, not a mean),
            descending.

    Examples:
        >>> import numpy as np
        >>> import rdcd_jax as rdcd
        >>> training = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
        >>> rdcd.PCAWhitening.fit(training, 2).apply(training[:5]).shape
        (5, 2)
    """

    mean: np.ndarray
    components: np.ndarray
    eigenvalues: np.ndarray

    @classmethod
    def fit(cls, training: np.ndarray, dim: int, whiten: bool = True) -> "PCAWhitening":
        """Fits the projection to training descriptors.

        Args:
            training: [N, D] finite numbers. Of more than 1000 * D rows only 1000 * D are used, in
                faiss's fixed selection.
            dim: how many dimensions to keep, 1 to D.
            whiten: divide each kept direction by the square root of its eigenvalue.

        Returns:
            The projection.

        Raises:
            UserError: fewer rows than dimensions, `dim` outside 1..D, NaN or infinity, or fewer
                than `dim` directions in which the training rows differ at all.

        Source: faiss's PCAMatrix. Its eigenvalues belong to the scatter matrix, which matters where
            no L2 norm follows.
        """
        training = np.asarray(training)
        if training.ndim != 2:
            raise UserError(f"training descriptors must be [N, D], not shape {training.shape}.")
        n_rows, n_in = training.shape
        if not 1 <= dim <= n_in:
            raise UserError(f"cannot keep {dim} dimensions of {n_in}; choose 1 to {n_in}.")
        if n_rows < n_in:
            raise UserError(
                f"whitening needs at least as many training descriptors as dimensions: "
                f"{n_rows} given for {n_in}; give a larger training set."
            )
        if rows_not_finite(training).size:
            raise UserError(
                "the training descriptors for whitening hold NaN or infinity; compute them again."
            )
        rows = training_selection(n_rows, _MAX_ROWS_PER_DIMENSION * n_in)

        # Blocks in float64: a million wide rows would not fit in memory all at once.
        blocks = [rows[i : i + _BLOCK_ROWS] for i in range(0, len(rows), _BLOCK_ROWS)]
        mean = sum(training[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(rows)
        scatter = np.zeros((n_in, n_in))
        for block in blocks:
            centred = training[block].astype(np.float64) - mean
            scatter += centred.T @ centred

        eigenvalues, vectors = np.linalg.eigh(scatter)
        eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
        noise = eigenvalues[0] * n_in * np.finfo(np.float64).eps
        n_useful = int(np.sum(eigenvalues > noise))
        if whiten and n_useful < dim:
            raise UserError(
                f"the training descriptors differ in only {n_useful} directions, so {dim} cannot "
                f"be whitened; keep at most {n_useful} dimensions or train on other images."
            )
        components = vectors[:, :dim].T
        if whiten:
            components = components / np.sqrt(eigenvalues[:dim, None])
        return cls(mean, np.ascontiguousarray(components), np.ascontiguousarray(eigenvalues))

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Returns the projected descriptors.

        Args:
            x: [N, D] finite numbers.

        Returns:
            [N, dim] float32 (computed in float64).

        Raises:
            UserError: another number of dimensions than in training, or NaN.
        """
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise UserError(
                f"the whitening was fitted on {len(self.mean)}-d descriptors and cannot be applied "
                f"to shape {x.shape}."
            )
        if rows_not_finite(x).size:
            raise UserError("the descriptors to whiten hold NaN or infinity; compute them again.")
        out = np.empty((len(x), len(self.components)), np.float32)
        for i in range(0, len(x), _BLOCK_ROWS):
            centred = x[i : i + _BLOCK_ROWS].astype(np.float64) - self.mean
            out[i : i + _BLOCK_ROWS] = centred @ self.components.T
        return out

    def save(self, path: str | os.PathLike) -> None:
        """Writes the projection to an `.npz` file."""
        with write_aside(path) as aside, aside.open("wb") as file:
            np.savez(file, **dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PCAWhitening":
        """Reads a projection that `save` wrote.

        Raises:
            UserError: the file is not one.
        """
        try:
            # Opened here, since numpy leaves a file open that turns out not to be an archive.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = cls(*(arrays[field.name] for field in dataclasses.fields(cls)))
            if found.components.shape[1:] != found.mean.shape or found.mean.ndim != 1:
                raise ValueError("shapes that do not fit")
        except Exception as error:
            # Damaged files make zipfile and numpy raise nearly anything.
            raise UserError(f"{path} is not a saved whitening; fit it again.") from error
        return found


def training_selection(n_rows: int, max_rows: int) -> np.ndarray:
    """Returns which training rows faiss's PCA would use.

    Args:
        n_rows: rows at hand.
        max_rows: rows wanted at most.

    Returns:
        [min(n_rows, max_rows)] int64: every row in order, or the head of faiss's own permutation (a
        Fisher-Yates shuffle by the 32-bit Mersenne twister seeded with 1234).
    """
    if n_rows <= max_rows:
        return np.arange(n_rows)
    draws = np.random.RandomState(_PERMUTATION_SEED).randint(0, 2**32, max_rows, dtype=np.uint32)
    order = np.arange(n_rows).tolist()
    for i, draw in enumerate(draws.tolist()):
        j = i + draw % (n_rows - i)
        order[i], order[j] = order[j], order[i]
    return np.asarray(order[:max_rows], np.int64)
