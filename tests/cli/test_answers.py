from __future__ import annotations

import torch
from datasets import Dataset

from burnish.cli.answers import Prompt, greedy_answers, sample_prompts
from conftest import make_rows


def test_prompts_are_spread_over_the_rows_and_open_the_answer(tokenizer):
    prompts = sample_prompts(Dataset.from_list(make_rows(9)), tokenizer, 3)
    assert [prompt.shown.split(":")[0] for prompt in prompts] == ["Question 0", "Question 3", "Question 6"]
    assert tokenizer.decode(list(prompts[0].ids)).endswith("<|im_start|>assistant\n")


def test_prompts_as_text_and_as_ids(tokenizer):
    text = Dataset.from_list([{"prompt": "Sky?", "chosen": " blue", "rejected": " red"}])
    (prompt,) = sample_prompts(text, tokenizer, 5)
    assert prompt.shown == "Sky?"
    ids = Dataset.from_list([{"prompt_input_ids": list(prompt.ids)}])
    assert sample_prompts(ids, tokenizer, 1) == [prompt]


def test_answers_are_the_most_likely_tokens_whatever_the_padding(model, tokenizer):
    """Each answer equals a loop of argmax over the model's own logits, alone and without padding."""
    prompts = [Prompt("", tuple(range(10, 10 + length))) for length in (3, 9, 5)]
    answers = greedy_answers(model, tokenizer, prompts, max_new_tokens=6, end_token_ids=(2,))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt.ids)
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
        new = ids[len(prompt.ids) :]
        assert answer.is_cut == (2 not in new)
        assert answer.text == tokenizer.decode(new, skip_special_tokens=True)


def test_the_mode_of_the_model_comes_back(model, tokenizer):
    model.train()
    greedy_answers(model, tokenizer, [Prompt("", (5, 6))], max_new_tokens=1, end_token_ids=(2,))
    assert model.training
    assert greedy_answers(model, tokenizer, [], max_new_tokens=1, end_token_ids=(2,)) == []


def test_an_end_token_ends_the_answer(model, tokenizer):
    first = int(model(torch.tensor([[5, 6]])).logits[0, -1].argmax())
    (answer,) = greedy_answers(model, tokenizer, [Prompt("", (5, 6))], max_new_tokens=4, end_token_ids=(first,))
    assert (answer.text, answer.is_cut) == ("", False)


def test_a_stop_string_ends_the_answer(model, tokenizer):
    """The answer is cut nowhere else than after the text that its first tokens spell."""
    prompt = Prompt("", (5, 6))
    (free,) = greedy_answers(model, tokenizer, [prompt], max_new_tokens=4, end_token_ids=(2,))
    stop = free.text[: len(free.text) // 2]
    (answer,) = greedy_answers(model, tokenizer, [prompt], max_new_tokens=4, end_token_ids=(2,), stop_strings=(stop,))
    assert stop in answer.text
    assert free.text.startswith(answer.text)
    assert len(answer.text) < len(free.text)
    assert free.is_cut
    assert not answer.is_cut
