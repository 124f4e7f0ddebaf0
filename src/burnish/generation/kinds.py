"""The kinds of caches by their names, the fastest first."""

from __future__ import annotations

from burnish.generation.cache import GrowingRows
from burnish.generation.placed import PlacedRows
from burnish.generation.shared import SharedRows

CACHES: dict[str, type[PlacedRows | GrowingRows]] = {"shared": SharedRows, "rows": PlacedRows, "dynamic": GrowingRows}
