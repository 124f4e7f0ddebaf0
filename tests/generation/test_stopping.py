from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from burnish.generation.stopping import StopStrings


def token_that_completes(tokenizer, strings: tuple[str, ...], text: str) -> list[int]:
    """Every position at which a stop string is completed, with the answer growing a token at a time."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    stops = StopStrings(tokenizer, strings)
    return [end for end in range(1, len(ids) + 1) if stops.completed_by_last(ids[:end])]


@pytest.mark.parametrize(
    ("strings", "text", "expected"),
    [
        (("END",), "so it ENDs, END", [9, 15]),
        (("\n\n",), "a\nb\n\nc\n\n", [5, 8]),
        (("no", "nothing"), "nothing", [2, 7]),
        (("aa",), "aa", [2]),
        (("x",), "", []),
        (("END",), "EN D", []),
        (("é",), "café", [5]),  # two bytes, two tokens
        (("→",), "a → b", [5]),  # three bytes
        (("🙂!",), "ok 🙂!", [8]),
        ((" the end",), "in the end", [10]),
        (("<|im_end|>\n",), "a<|im_end|>\nb", [3]),  # a special token is text here
    ],
)
def test_positions(tokenizer, strings, text, expected):
    assert token_that_completes(tokenizer, strings, text) == expected


def test_only_a_tail_is_decoded(tokenizer):
    """The last `window` tokens say as much as the whole answer."""
    text = "ü" * 50 + "wait → " * 3 + "stop" + "ü" * 9
    ids = tokenizer(text).input_ids
    stops = StopStrings(tokenizer, ("→", "stop"))
    assert stops.window < 10
    whole = [stops.completed_by_last(ids[:end]) for end in range(1, len(ids) + 1)]
    tails = [stops.completed_by_last(ids[max(0, end - stops.window) : end]) for end in range(1, len(ids) + 1)]
    assert whole == tails
    assert sum(whole) == 4


def test_a_token_that_is_longer_than_the_string():
    """A merged token may hold text behind the stop string: it still completes it."""
    core = Tokenizer(models.BPE(vocab={"<pad>": 0, "a": 1, "##": 2, "#": 3, "##x": 4}, merges=[]))
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    stops = StopStrings(tokenizer, ("##",))
    answers = {(1, 4): True, (1, 3): False, (3, 3): True, (1, 2, 1): False, (3, 1, 4): True}
    assert {ids: stops.completed_by_last(ids) for ids in answers} == answers


def test_a_space_that_the_decoder_drops_at_the_beginning():
    """Metaspace tokenizers do: the space of a stop string is only seen with a token before it."""
    core = Tokenizer(models.BPE(vocab={"<pad>": 0, "\u2581": 1, "f": 2, "o": 3, "x": 4}, merges=[]))
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    assert tokenizer.decode([1, 2, 3, 3]) == "foo"
    ids = [4, 1, 4, 1, 2, 3, 3]
    stops = StopStrings(tokenizer, (" foo",))
    assert [stops.completed_by_last(ids[:end]) for end in range(1, 8)] == [False] * 6 + [True]
