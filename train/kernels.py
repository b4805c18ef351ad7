"""The decoder's pass on a CPU, compiled by numba: all that a row needs stays in the processor's cache."""

import numpy as np

from store.kernels import LINE, compiled, prefetch

AHEAD = 4
"""How many entries before its use a decoder row is asked from memory."""


@compiled
def decode_rows(first, last, latent, value, order, starts, decoder, b_dec, target, sums, sse, grad_latent, residual):
    """`decode_nested` for the rows `first` to `last`.

    latent and value are in the order of the bags; sums [n_groups, rows, d_out], sse [n_groups, rows], grad_latent (in the
    order of Entries) and residual [rows or 0, d_out] are written.
    """
    n_groups, rows, width = sums.shape
    error = np.empty((n_groups, width), np.float32)
    for row in range(first, last):
        for group in range(n_groups):
            here = error[group]
            for c in range(width):
                here[c] = b_dec[c] - target[row, c] if group == 0 else error[group - 1, c]
            bag = group * rows + row
            for e in range(starts[bag], starts[bag + 1]):
                if e + AHEAD < len(latent):
                    for c in range(0, width, LINE):
                        prefetch(decoder, latent[e + AHEAD], c)  # type: ignore[call-arg]  # numba gives the context
                weights, scale = decoder[latent[e]], value[e]
                for c in range(width):
                    here[c] += scale * weights[c]
            total = np.float32(0)
            for c in range(width):
                total += here[c] * here[c]
            sse[group, row] = total
        if len(residual):
            residual[row] = error[n_groups - 1]
        for group in range(n_groups - 1, -1, -1):
            here = error[group]
            if group < n_groups - 1:
                for c in range(width):
                    here[c] += error[group + 1, c]
            sums[group, row] = here
            bag = group * rows + row
            for e in range(starts[bag], starts[bag + 1]):
                weights, total = decoder[latent[e]], np.float32(0)
                for c in range(width):
                    total += here[c] * weights[c]
                grad_latent[order[e]] = total
