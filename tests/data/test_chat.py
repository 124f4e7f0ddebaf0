import pytest

from burnish.data.chat import render_preference
from burnish.data.errors import DataError, RowProblem
from burnish.data.formats import ChatPreference, TextPreference
from conftest import CHAT_TEMPLATE, make_tokenizer

QUESTION = [{"role": "user", "content": "a"}]
HEAD = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"

THINKING_OPENER = CHAT_TEMPLATE.replace("<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>\n{%")
STRIPS_HISTORY = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REWRITES_PROMPT = "{{ messages | length }} messages: " + CHAT_TEMPLATE
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT_TEMPLATE


def answers(*texts):
    roles = ["assistant", "user"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def trained(rendered):
    return [rendered.text[start:end] for start, end in rendered.spans]


def test_text_is_left_alone(tokenizer):
    chosen, rejected = render_preference(tokenizer, TextPreference("Sky?", " blue", " red"))
    assert (chosen.text, chosen.spans, chosen.is_chat) == ("Sky? blue", ((4, 9),), False)
    assert trained(rejected) == [" red"]


def test_answer_starts_after_the_generation_prompt(tokenizer):
    chosen, rejected = render_preference(tokenizer, ChatPreference(QUESTION, answers("b"), answers("c")))
    assert chosen.text == HEAD + "b<|im_end|>\n"
    assert trained(chosen) == ["b<|im_end|>\n"]
    assert trained(rejected) == ["c<|im_end|>\n"]
    assert (chosen.num_untrained_turns, chosen.num_reworded_prompts) == (0, 0)


def test_only_the_assistants_turns_of_a_long_completion(tokenizer):
    chosen, _ = render_preference(tokenizer, ChatPreference(QUESTION, answers("b", "why", "c"), answers("d")))
    assert trained(chosen) == ["b<|im_end|>\n", "c<|im_end|>\n"]
    assert chosen.num_untrained_turns == 0


def test_tool_turns_are_not_trained(tokenizer):
    completion = [*answers("b"), {"role": "tool", "content": "42"}, *answers("c")]
    chosen, _ = render_preference(tokenizer, ChatPreference(QUESTION, completion, answers("d")))
    assert "".join(trained(chosen)) == "b<|im_end|>\nc<|im_end|>\n"


def test_opener_that_the_answer_lacks_is_counted():
    tokenizer = make_tokenizer(THINKING_OPENER)
    chosen, _ = render_preference(tokenizer, ChatPreference(QUESTION, answers("b"), answers("c")))
    assert trained(chosen) == ["b<|im_end|>\n"]
    assert chosen.num_reworded_prompts == 1


def test_turns_rewritten_later_are_untrained_and_counted():
    """The first answer loses its thinking block once a turn follows, so its end cannot be told."""
    tokenizer = make_tokenizer(STRIPS_HISTORY)
    chosen, rejected = render_preference(tokenizer, ChatPreference(QUESTION, answers("b", "why", "c"), answers("d")))
    assert trained(chosen) == ["<think>\n\n</think>\n\nc<|im_end|>\n"]
    assert chosen.num_untrained_turns == 1
    assert rejected.num_untrained_turns == 0


def test_template_that_rewrites_the_prompt_is_a_problem_of_the_row():
    with pytest.raises(RowProblem, match="no turn can be trained"):
        render_preference(make_tokenizer(REWRITES_PROMPT), ChatPreference(QUESTION, answers("b"), answers("c")))


def test_template_that_refuses_is_named_with_its_words():
    prompt = [{"role": "system", "content": "s"}, *QUESTION]
    with pytest.raises(RowProblem, match="no system turn") as caught:
        render_preference(make_tokenizer(NO_SYSTEM), ChatPreference(prompt, answers("b"), answers("c")))
    assert caught.value.column == "prompt"


def test_no_chat_template_names_the_tokenizer_and_the_fix():
    with pytest.raises(DataError, match=r"has no chat template[\s\S]*set tokenizer.chat_template"):
        render_preference(make_tokenizer(None), ChatPreference(QUESTION, answers("b"), answers("c")))
