"""Autocast casts a weight at each use and forgets it when its context ends: here its casts live for a whole step."""

from __future__ import annotations

from contextlib import ExitStack

import torch


class KeptCasts:
    """Casts of weights that the micro-batches of an optimizer step share.

    Autocast's cache is emptied when the outermost of its contexts ends. One that casts nothing, so that the backward
    pass runs as ever, keeps it over the contexts of the forward passes. It must be closed before weights change.
    `torch.set_autocast_cache_enabled(False)` switches all casts' keeping off.

    Args:
        device_type: "cpu", "cuda", ….
        casts: whether there is anything to cast: the run is in bfloat16 or float16.
    """

    def __init__(self, device_type: str, *, casts: bool) -> None:
        self._device_type, self._casts, self._open = device_type, casts, ExitStack()

    def open(self) -> None:
        """Keep casts from now on, and none that was made before."""
        self.close()
        if self._casts:
            self._open.enter_context(torch.autocast(self._device_type, enabled=False))

    def close(self) -> None:
        """Forget them."""
        self._open.close()
