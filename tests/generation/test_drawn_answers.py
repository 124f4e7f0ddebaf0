from __future__ import annotations

import torch

from burnish.generation.answers import Answers
from burnish.generation.base import Prompt, SamplingParams
from burnish.generation.sampling import Draw
from burnish.generation.stopping import StopStrings


def drawn(*tokens: int) -> Draw:
    return Draw(torch.tensor(tokens), -torch.tensor(tokens) / 8, torch.full((len(tokens),), 0.5))


def make_answers(num_rows: int, stops: StopStrings | None = None, **settings) -> Answers:
    params = SamplingParams(**{"max_new_tokens": 3, "end_token_ids": (2, 9), **settings})
    return Answers(num_rows, params, stops=stops, dtype=torch.float32, device=torch.device("cpu"))


def test_rows_end_each_in_its_way():
    """Row 0 ends at once, row 1 with another end token, row 2 at the limit, row 3 with an end token in the last place."""
    answers = make_answers(4)
    assert answers.write(drawn(2, 4, 5, 6), torch.arange(4)).tolist() == [True, False, False, False]
    assert answers.write(drawn(6, 9, 5), torch.tensor([3, 1, 2])).tolist() == [False, True, False]
    assert answers.write(drawn(7, 2), torch.tensor([2, 3])).tolist() == [True, True]
    prompts = [Prompt(ids=torch.tensor([row + 20]), key=row) for row in range(4)]
    completions = answers.completions(prompts, version=5)
    assert [c.token_ids.tolist() for c in completions] == [[2], [4, 9], [5, 5, 7], [6, 6, 2]]
    assert [c.finish_reason for c in completions] == ["stop", "stop", "length", "stop"]
    assert [c.is_truncated for c in completions] == [False, False, True, False]
    assert completions[1].logps.tolist() == [-0.5, -1.125]
    assert completions[1].kept_mass.tolist() == [0.5, 0.5]
    assert completions[1].loss_mask.tolist() == [True, True]
    assert [(c.prompt_ids.tolist(), c.policy_version) for c in completions] == [([row + 20], 5) for row in range(4)]


def test_rows_may_be_at_different_places():
    """Row 1 begins when row 0 has drawn two tokens."""
    answers = make_answers(2)
    for tokens, rows in (((4,), [0]), ((5,), [0]), ((6, 7), [1, 0])):
        ended = answers.write(drawn(*tokens), torch.tensor(rows))
    assert ended.tolist() == [False, True]
    assert answers.drawn.tolist() == [3, 1]
    assert answers.tokens.tolist() == [[4, 5, 7], [6, 0, 0]]


def test_a_completion_does_not_hold_the_whole_batch():
    answers = make_answers(2)
    answers.write(drawn(2, 2), torch.arange(2))
    for completion in answers.completions([Prompt(ids=torch.tensor([1]), key=0)] * 2, version=0):
        assert completion.token_ids.untyped_storage().nbytes() == 8
        assert completion.logps.untyped_storage().nbytes() == 4


def test_stop_strings_wait_and_end_tokens_go_first(tokenizer):
    """Row 0 writes "ab" before min_new_tokens, and again; in row 1 the end token comes first."""
    a, b, end = *tokenizer("ab").input_ids, 2
    stops = StopStrings(tokenizer, ("ab", "<|im_end|>"))
    answers = make_answers(2, stops, max_new_tokens=6, min_new_tokens=3)
    rows = torch.arange(2)
    assert answers.write(drawn(a, a), rows).tolist() == [False, False]
    assert answers.write(drawn(b, b), rows).tolist() == [False, False]
    assert answers.write(drawn(a, end), rows).tolist() == [False, True]
    assert answers.write(drawn(b), rows[:1]).tolist() == [True]
    reasons = [(len(c), c.finish_reason) for c in answers.completions([Prompt(ids=rows, key=0)] * 2, version=0)]
    assert reasons == [(4, "stop_string"), (3, "stop")]
