from __future__ import annotations

import pytest

from burnish.models.load import EMBEDDED
from burnish.models.origin import Origin, origin_of

SMOL = EMBEDDED["smollm2-135m"]


def test_an_embedded_model_has_its_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path))
    directory = tmp_path / "models" / "smollm2-135m-0.1.2"
    directory.mkdir(parents=True)
    assert origin_of(str(directory)) == Origin(SMOL.hub_name, "apache-2.0")
    assert origin_of(SMOL.hub_name) == Origin(SMOL.hub_name, "apache-2.0")


def test_a_name_on_the_hub_is_not_looked_up():
    assert origin_of("owner/name") == Origin("owner/name", None)
    assert origin_of("") == Origin(None, None)
    assert origin_of("/some/where/else") == Origin(None, None)


@pytest.mark.parametrize(
    ("readme", "license"),
    [
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\nlicense: [a]\n---\n", None),
        ("# no front matter", None),
        ("---\n: [\n---\n", None),
        (None, None),
    ],
)
def test_a_directory_says_its_licence(tmp_path, readme, license):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert origin_of(str(tmp_path)) == Origin(None, license)
