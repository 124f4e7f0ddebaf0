"""The preference sets of the recipes: large enough, clean, and not to be told apart by length."""

from __future__ import annotations

import importlib.util
import json
import re
from importlib import resources
from pathlib import Path

import pytest

from burnish.models.embedded import EMBEDDED

TRAIN, HELD_OUT = "spoken-train", "spoken-heldout"
GRAM = 8


def read(name: str) -> list[dict]:
    path = resources.files("burnish.recipes") / "data" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(rows: list[dict]) -> list[tuple[str, str]]:
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]


def units(text: str) -> list[str]:
    """Words in lower case; each Chinese character is one of its own."""
    return re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower())


def grams(rows: list[dict]) -> set[tuple[str, ...]]:
    texts = [turn["content"] for row in rows for column in ("prompt", "chosen", "rejected") for turn in row[column]]
    split = [units(text) for text in texts]
    return {tuple(words[start : start + GRAM]) for words in split for start in range(len(words) - GRAM + 1)}


def best_length_rule(lengths: list[tuple[int, int]]) -> float:
    """Share of pairs that the better of `longer wins` and `shorter wins` gets right; a tie counts one half."""
    longer = sum((chosen > rejected) + 0.5 * (chosen == rejected) for chosen, rejected in lengths) / len(lengths)
    return max(longer, 1 - longer)


def test_best_length_rule_by_hand():
    """Longer is right in 2 of 4 pairs and ties once: 0.625."""
    assert best_length_rule([(5, 3), (9, 2), (1, 4), (6, 6)]) == 0.625


def test_grams_by_hand():
    row = {
        "prompt": [{"content": "a b c d e f g h i"}],
        "chosen": [{"content": "x"}],
        "rejected": [{"content": "天地"}],
    }
    assert grams([row]) == {tuple("abcdefgh"), tuple("bcdefghi")}


def test_sizes_and_languages():
    train, held_out = read(TRAIN), read(HELD_OUT)
    assert len(train) >= 320
    assert len(held_out) >= 64
    assert sum(row["language"] == "zh" for row in train) == 45
    assert sum(row["language"] == "zh" for row in held_out) == 10


@pytest.mark.parametrize("name", [TRAIN, HELD_OUT])
def test_rows_are_one_question_and_two_answers(name):
    for row in read(name):
        assert [turn["role"] for turn in row["prompt"]] == ["user"]
        assert [turn["role"] for turn in row["chosen"] + row["rejected"]] == ["assistant"] * 2
        assert all(chosen.strip() and rejected.strip() and chosen != rejected for chosen, rejected in answers([row]))


def test_no_prompt_twice():
    prompts = [row["prompt"][0]["content"] for row in read(TRAIN) + read(HELD_OUT)]
    assert len(set(prompts)) == len(prompts)


def test_chosen_answers_can_be_read_aloud():
    """No headings, bullets, tables, code, bold text or arrows; every rejected answer has one of them."""
    markup = re.compile(r"^\s*(#|[-*•]\s|\d+[.)]\s)|\*\*|`|\||→|≈|\n", re.MULTILINE)
    for name in (TRAIN, HELD_OUT):
        spoken = [chosen for chosen, _ in answers(read(name)) if markup.search(chosen)]
        plain = [rejected for _, rejected in answers(read(name)) if not markup.search(rejected)]
        assert not spoken
        assert not plain


def test_held_out_topics_are_other_topics():
    assert not {row["topic"] for row in read(TRAIN)} & {row["topic"] for row in read(HELD_OUT)}


def test_no_shared_eight_grams():
    assert not grams(read(TRAIN)) & grams(read(HELD_OUT))


@pytest.mark.parametrize("name", [TRAIN, HELD_OUT])
def test_length_in_characters_says_little(name):
    assert best_length_rule([(len(chosen), len(rejected)) for chosen, rejected in answers(read(name))]) <= 0.6


@pytest.fixture(scope="module")
def tokenizer():
    model = EMBEDDED["smollm2-135m"]
    missing = [package for package in (model.package, "gguf") if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"counting tokens needs the tokenizer of smollm2-135m: {', '.join(missing)} not installed")
    from transformers import AutoTokenizer

    folder = Path(importlib.util.find_spec(model.package).submodule_search_locations[0])
    return AutoTokenizer.from_pretrained(str(folder), gguf_file=model.file)


@pytest.mark.gallery
@pytest.mark.parametrize("name", [TRAIN, HELD_OUT])
def test_length_in_tokens_says_little(tokenizer, name):
    lengths = [tuple(map(len, tokenizer(list(pair))["input_ids"])) for pair in answers(read(name))]
    assert best_length_rule(lengths) <= 0.6
