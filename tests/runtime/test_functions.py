from __future__ import annotations

import pytest

from burnish.runtime.functions import import_function


def test_a_function_of_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "functions_of_this_test.py").write_text("def one():\n    return 1\n")
    assert import_function("functions_of_this_test:one", option="judge")() == 1


@pytest.mark.parametrize("name", ["json", "json:", ":loads"])
def test_other_forms(name):
    with pytest.raises(ValueError, match=f"judge='{name}'; a function is written module:function"):
        import_function(name, option="judge")


def test_what_is_not_there():
    with pytest.raises(
        ValueError, match=r"judge 'json:lods': json has no 'lods', did you mean 'loads'.* it has: .*loads"
    ):
        import_function("json:lods", option="judge")
    with pytest.raises(ImportError, match="no_such_module_here"):
        import_function("no_such_module_here:f", option="judge")
