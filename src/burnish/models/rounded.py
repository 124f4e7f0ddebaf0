"""Sizes that come again: rows of a matrix product, rounded up to a few numbers.

On a CPU oneDNN, which multiplies in low precision, compiles a program for each size of a product that it has not seen,
and keeps about 0.6 MB of it. Batches of text have another number of tokens each time, so a run would compile all along;
and since the programs lie among the numbers of the step, in memory that it would use again, it would grow with them.
"""

from __future__ import annotations

STEPS = 32  # so many sizes in each doubling


def round_up(size: int) -> int:
    """The next size that is used: less than 1/32 more, and the same for fewer than 64.

    `burnish.models.rounded.STEPS = 1 << 60` leaves all sizes as they are, to debug with.

    Args:
        size: at least 0.
    """
    step = 1 << max((size // STEPS).bit_length() - 1, 0)
    return -(-size // step) * step
