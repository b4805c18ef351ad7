"""Features on a plane and in communities: by the directions that they write, and by the rows on which they fire."""

import random
from collections.abc import Sequence

import igraph
import numpy as np
import scipy.sparse
from jaxtyping import Float
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.manifold import TSNE

MAPPED = 2048
"""Features on a map, evenly spaced through the dictionary where it has more."""

COMPONENTS = 50
"""Main axes that are kept before points are laid out."""


def coactive(rows: Sequence[dict]) -> scipy.sparse.csr_array:
    """The graph of latents that fire together: an edge for each kept neighbour, weighing the cosine of firing patterns."""
    pairs = [(row["feature"], item["feature"], item["score"]) for row in rows for item in row["near_coactive"]]
    one, other, score = np.array(pairs, float).reshape(-1, 3).T
    graph = scipy.sparse.csr_array((score, (one.astype(int), other.astype(int))), shape=(len(rows), len(rows)))
    return graph.maximum(graph.T).tocsr()


def communities(graph: scipy.sparse.csr_array) -> tuple[list[list[int]], float]:
    """Leiden's communities (arXiv 1810.08473) of two or more latents, the largest first; and their modularity."""
    edges = scipy.sparse.triu(graph, 1).tocoo()
    if not edges.nnz:
        return [], 0.0
    igraph.set_random_number_generator(random.Random(0))
    network = igraph.Graph(n=len(graph.indptr) - 1, edges=np.stack([edges.row, edges.col], axis=1))
    network.es["weight"] = edges.data
    found = network.community_leiden("modularity", weights="weight", n_iterations=-1)
    groups = sorted((sorted(group) for group in found if len(group) > 1), key=lambda group: (-len(group), group))
    return groups, network.modularity(found, weights="weight")


def by_directions(W_dec: Float[np.ndarray, "d_sae d_out"], chosen: np.ndarray) -> Float[np.ndarray, "n 2"]:
    """Places for some latents; those that write alike lie together."""
    unit = W_dec / np.maximum(np.linalg.norm(W_dec, axis=1, keepdims=True), 1e-12)
    reduced = np.asarray(PCA(min(COMPONENTS, *unit.shape), random_state=0).fit_transform(unit), dtype=float)
    return layout(reduced[chosen])


def by_firing(graph: scipy.sparse.csr_array, chosen: np.ndarray) -> Float[np.ndarray, "n 2"]:
    """Places for some latents; those that fire together, or with the same ones, lie together."""
    n = len(graph.indptr) - 1
    reduced = TruncatedSVD(min(COMPONENTS, n - 1), random_state=0).fit_transform(graph + scipy.sparse.eye_array(n))
    return layout(np.asarray(reduced)[chosen])


def layout(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 2"]:
    """t-SNE of the vectors, in 0..1. Near points are alike; distances between far ones say little."""
    if len(vectors) < 3:
        return np.linspace(0, 1, 2 * len(vectors)).reshape(-1, 2)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    settled = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500).fit_transform(vectors)
    low = settled.min(0)
    high = settled.max(0)
    return (settled - low) / np.maximum(high - low, 1e-9)


def spread(latents: np.ndarray) -> np.ndarray:
    """At most MAPPED of them, evenly spaced."""
    return latents[np.linspace(0, len(latents) - 1, min(len(latents), MAPPED)).astype(int)]
