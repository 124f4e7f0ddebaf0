from __future__ import annotations

import dataclasses

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from burnish.data.collate import PreferenceCollator
from burnish.data.tokenize import TruncationPolicy, prepare_preferences
from burnish.report.tokens import CUT, PROMPT, TRAINED, UNTRAINED, escaped, view_batch
from burnish.types import TokenBatch
from conftest import make_rows

HOSTILE = "\x1b[2J\x1b]8;;http://x\x07<script>alert(1)</script>\u202eabc\u200b\ufeff\r\x9b1m"


def collated(rows, tokenizer, **limits):
    prepared, _ = prepare_preferences(Dataset.from_list(rows), tokenizer, truncation=TruncationPolicy(**limits))
    return PreferenceCollator(0)(list(prepared))


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Words with their leading space in the token, which decoding strips at the start of a text; bytes for the rest."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    pieces += [("▁sky", -1.0), ("▁is", -1.0), ("▁blue", -1.0), ("▁red", -1.0), ("▁", -2.0), ("é", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("limits", [{}, {"max_length": 60}, {"max_length": 60, "truncation_mode": "keep_end"}])
def test_what_is_shown_is_what_the_tensors_hold(tokenizer, limits):
    rows = make_rows(12)
    batch, whole = collated(rows, tokenizer, **limits), collated(rows, tokenizer)
    views = view_batch(batch, tokenizer, whole=whole)
    assert [view.row_id for view in views] == list(range(12))
    for prompt, view in enumerate(views):
        assert view.prompt.ids(PROMPT) == tuple(batch.prompt_ids[prompt][batch.prompt_mask[prompt]].tolist())
        assert [passage.name for passage in view.completions] == ["chosen", "rejected"]
        for row, passage in zip((2 * prompt, 2 * prompt + 1), view.completions, strict=True):
            ids, there = batch.completion_ids[row], batch.completion_mask[row]
            trained = tuple(ids[batch.loss_mask[row]].tolist())
            assert passage.ids(TRAINED) == trained
            assert passage.ids(TRAINED, UNTRAINED) == tuple(ids[there].tolist())
            shown = "".join(segment.text for segment in passage.segments if segment.kind == TRAINED)
            assert shown == tokenizer.decode(list(trained))
            given = tuple(whole.completion_ids[row][whole.completion_mask[row]].tolist())
            assert passage.ids(TRAINED, UNTRAINED, CUT) == given
        given = tuple(whole.prompt_ids[prompt][whole.prompt_mask[prompt]].tolist())
        assert view.prompt.ids(CUT) + view.prompt.ids(PROMPT) == given
    num_cut = sum(len(passage.ids(CUT)) for view in views for passage in (view.prompt, *view.completions))
    assert (num_cut > 0) == bool(limits)


def test_turns_between_the_answers_are_not_trained(tokenizer):
    turns = [("assistant", "a"), ("user", "why?"), ("assistant", "because")]
    rows = [
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": role, "content": text} for role, text in turns],
            "rejected": [{"role": "assistant", "content": "b"}],
        }
    ]
    (view,) = view_batch(collated(rows, tokenizer), tokenizer)
    chosen = view.completions[0].segments
    assert [segment.kind for segment in chosen] == [TRAINED, UNTRAINED, TRAINED]
    assert [segment.text for segment in chosen] == [
        "a<|im_end|>",
        "\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n",
        "because<|im_end|>",
    ]
    assert [piece.is_special for piece in chosen[0].pieces] == [False, True]


def test_a_character_of_several_tokens_is_one_piece_unless_it_is_cut_through(tokenizer):
    rows = [{"prompt": "q: ", "chosen": "é€", "rejected": "no"}]
    (view,) = view_batch(collated(rows, tokenizer), tokenizer)
    pieces = view.completions[0].segments[0].pieces
    assert [(piece.text, len(piece.ids)) for piece in pieces] == [("é", 2), ("€", 3), ("<|im_end|>", 1)]
    (view,) = view_batch(collated(rows, tokenizer, max_length=6), tokenizer, whole=collated(rows, tokenizer))
    trained, cut = view.completions[0].segments
    assert (trained.kind, cut.kind) == (TRAINED, CUT)
    assert [(piece.text, piece.is_special) for piece in trained.pieces] == [("é", False), ("â", True)]
    assert [piece.is_special for piece in cut.pieces] == [True, True, True]


def test_spaces_that_decoding_strips_are_kept():
    tokenizer = sentencepiece_like()
    rows = [{"prompt": "sky is", "chosen": " blue ü", "rejected": " red"}]
    (view,) = view_batch(collated(rows, tokenizer), tokenizer)
    assert view.completions[0].segments[-1].text == " blue ü</s>"
    assert view.completions[1].segments[-1].text == " red</s>"


def test_graded_and_tied_answers_have_their_own_names(tokenizer):
    graded = [{"prompt": "q: ", "completions": ["a", "b", "c"], "scores": [1.0, 3.0, 1.0]}]
    (view,) = view_batch(collated(graded, tokenizer), tokenizer)
    assert [passage.name for passage in view.completions] == [
        "completion 0, preferred to 0 others",
        "completion 1, preferred to 2 others",
        "completion 2, preferred to 0 others",
    ]
    tied = [{"prompt": "q: ", "chosen": "a", "rejected": "b", "tie": True}]
    (view,) = view_batch(collated(tied, tokenizer), tokenizer)
    assert [passage.name for passage in view.completions] == ["completion 0, tied", "completion 1, tied"]


def test_any_parcel_can_be_shown(tokenizer):
    """Prompts without completions yet, as a rollout begins; and several completions of one prompt."""
    batch = TokenBatch(
        prompt_ids=torch.tensor([[0, 5, 6], [7, 8, 9]]),
        prompt_mask=torch.tensor([[False, True, True], [True, True, True]]),
        completion_ids=torch.tensor([[10, 2], [11, 0], [12, 2]]),
        completion_mask=torch.tensor([[True, True], [True, False], [True, True]]),
        loss_mask=torch.tensor([[True, True], [True, False], [False, True]]),
        prompt_index=torch.tensor([1, 0, 1]),
        row_id=torch.tensor([40, 30, 40]),
    )
    later, first = view_batch(batch, tokenizer)
    assert (later.row_id, later.prompt.ids(PROMPT), first.prompt.ids(PROMPT)) == (40, (7, 8, 9), (5, 6))
    assert [passage.counts for passage in later.completions] == [{TRAINED: 2}, {UNTRAINED: 1, TRAINED: 1}]
    empty = torch.zeros((3, 0), dtype=torch.int64)
    opened = dataclasses.replace(batch, completion_ids=empty, completion_mask=empty.bool(), loss_mask=empty.bool())
    assert view_batch(opened, tokenizer)[0].completions[0].segments == ()


def test_nothing_can_hide():
    shown = escaped(HOSTILE)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    for name in ("\\x1b[2J", "\\x07", "\\u202e", "\\u200b", "\\ufeff", "\\r", "\\x9b"):
        assert name in shown
    assert escaped("a b\n\tc\xa0d") == "a b↵\n⇥c\\xa0d"
    assert escaped("\ud800\U000e0041") == "\\ud800\\U000e0041"


def test_plain_values_hold_the_ids(tokenizer):
    (view, *_) = view_batch(collated(make_rows(1), tokenizer), tokenizer)
    plain = view.as_dict()
    segment = plain["completions"][0]["segments"][0]
    assert tuple(segment["ids"]) == view.completions[0].ids(TRAINED)
    assert segment["num_tokens"] == len(segment["ids"])
    assert plain["prompt"]["counts"] == {PROMPT: len(view.prompt.ids(PROMPT))}
