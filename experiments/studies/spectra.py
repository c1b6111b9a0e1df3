"""How descriptors are spread over their dimensions."""

import numpy as np


def spectrum(descriptors: np.ndarray) -> dict:
    """The spread of descriptors [N, D].

    Returns:
        `effective_rank`: exp of the entropy of the variance's shares of the principal directions, 1 to D; `directions`:
        how many hold 90% and 99% of the variance; `length_of_mean_descriptor`; `singular_values` of the centred
        descriptors, descending.
    """
    centre = descriptors.mean(axis=0)
    values = np.linalg.svd(descriptors.astype(np.float64) - centre, compute_uv=False)
    share = values[values > 0] ** 2 / np.sum(values**2)
    held = np.cumsum(share)
    return {
        "effective_rank": round(float(np.exp(-np.sum(share * np.log(share)))), 1),
        "directions": {f"{part:.0%}": int(np.searchsorted(held, part)) + 1 for part in (0.9, 0.99)},
        "length_of_mean_descriptor": round(float(np.linalg.norm(centre)), 3),
        "singular_values": [float(f"{value:.4g}") for value in values],
    }
