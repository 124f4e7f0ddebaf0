from __future__ import annotations

import re

import pytest

from burnish.cli.methods import METHODS
from burnish.cli.runfile import load_runfile
from burnish.cli.template import ESSENTIAL, OF_METHOD, shorten, template
from burnish.cli.validate import load_schema


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("every_option", [False, True])
def test_what_init_prints_passes_check(tmp_path, method, every_option):
    path = tmp_path / "run.yaml"
    path.write_text(template(method, every_option=every_option))
    assert set(load_runfile(path).training) == {*OF_METHOD[method], *ESSENTIAL}


@pytest.mark.parametrize("method", METHODS)
def test_every_option_passes_check_without_its_comment_sign(tmp_path, method):
    path = tmp_path / "run.yaml"
    path.write_text(re.sub(r"(?m)^  #(\w+:)", r"  \1", template(method, every_option=True)))
    options = load_schema()["$defs"][method]["properties"]
    assert set(load_runfile(path).training) == {name for name in options if "x-refused" not in options[name]}


def test_each_key_has_a_sentence_above_it():
    lines = template("dpo").splitlines()
    keys = [index for index, line in enumerate(lines) if re.match(r" *\w+:", line)]
    assert all(lines[index - 1].lstrip().startswith("#") for index in keys)


def test_an_unknown_method_is_refused_with_the_closest():
    with pytest.raises(ValueError, match="did you mean 'dpo'"):
        template("dpoo")


def test_shorten_keeps_whole_sentences():
    assert shorten("One, e.g. this. Two. Three.", length=20) == "One, e.g. this. Two."
    assert shorten("A single sentence that is long.", length=5) == "A single sentence that is long."
