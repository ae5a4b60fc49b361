"""The loop of `FiringStatistics.add`, compiled by numba for the CPU: one look at an entry, not a dozen passes."""

import numpy as np

from saetool.sparse.backends.cpu.compiled import compiled


@compiled
def count_entries(latents, values, offsets, tokens, unit, edges, histogram, profile, cells):
    """Add the entries of whole images to histogram and profile; return the largest value.

    cells [n_latents · images, 3], all 0 before, gets for latent · images + image: the largest value's bits and the
    reversed patch of the first that has it, the number of firing tokens, and their sum in units. `edges` are
    log-spaced, a fixed number to an octave, beginning at a power of two.
    """
    images = (offsets.shape[0] - 1) // tokens
    bits = values.view(np.int32)
    n_bins = histogram.shape[1]
    octaves = -int(np.log2(edges[0]))
    to_octave = n_bins // (2 * octaves)
    largest = np.float32(0)
    for row in range(offsets.shape[0] - 1):
        image, patch = row // tokens, row % tokens
        for e in range(offsets[row], offsets[row + 1]):
            value, latent = values[e], latents[e]
            largest = max(largest, value)
            place = ((bits[e] >> 23) - 127 + octaves) * to_octave
            place = min(max(place - 1, 0), n_bins - 1)
            while place < n_bins - 1 and value > edges[place + 1]:
                place += 1
            histogram[latent, place] += 1
            units = np.int64(np.rint(np.float64(value) / unit))
            profile[patch, latent] += units
            cell = cells[latent * images + image]
            cell[0] = max(cell[0], (np.int64(bits[e]) << 32) | (tokens - 1 - patch))
            cell[1] += 1
            cell[2] += units
    return largest


@compiled
def strongest_entries(latents, values, offsets, found_latents, found_values):
    """Write each row's largest values and their latents, largest first, of equals the earlier entry first.

    found_latents and found_values [rows, k] start at −1 and 0.
    """
    k = found_latents.shape[1]
    for row in range(offsets.shape[0] - 1):
        best, where = found_values[row], found_latents[row]
        held = 0
        for e in range(offsets[row], offsets[row + 1]):
            value = values[e]
            if held == k and value <= best[k - 1]:
                continue
            place = held if held < k else k - 1
            while place > 0 and best[place - 1] < value:
                best[place], where[place] = best[place - 1], where[place - 1]
                place -= 1
            best[place], where[place] = value, latents[e]
            held = min(held + 1, k)
