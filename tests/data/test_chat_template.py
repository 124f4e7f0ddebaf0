"""Twelve ways in which chat templates write a conversation, down to token ids; and templates that are at fault."""

import datasets
import pytest
from datasets import disable_progress_bars

from burnish.data.chat import open_prompt
from burnish.data.errors import DataError, RowProblem
from burnish.data.formats import ChatPreference
from burnish.data.sources import load_rows
from burnish.data.tokenize import prepare_preferences
from burnish.data.truncate import TruncationPolicy
from conftest import CHAT_TEMPLATE, make_rows, make_tokenizer

disable_progress_bars()
SPECIAL = ["<s>", "</s>", "<eot>", "<end>", "<think>", "</think>", "[INST]", "[/INST]"]
ROW = {
    "prompt": [{"role": "user", "content": "Sky?"}],
    "chosen": [{"role": "assistant", "content": "Blue."}],
    "rejected": [{"role": "assistant", "content": "Red."}],
}
ASKED = "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<h>{{ m.role }}</h>\n\n{{ m.content | trim }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}<h>assistant</h>\n\n{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
OTHER_NAME = (
    "{{ bos_token }}{% for m in messages %}<{{ 'model' if m.role == 'assistant' else m.role }}>\n"
    "{{ m.content | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}<model>\n{% endif %}"
)
LINES = (
    "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
END_OF_ALL = (
    "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% else %}{{ eos_token }}{% endif %}"
)
OPENS_THINKING = CHAT_TEMPLATE.replace("assistant\n{%", "assistant\n<think>\n{%")
EMPTY_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think></think>"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_THINKING = EMPTY_THINKING.replace("assistant\n{% endif %}", "assistant\n<think></think>{% endif %}")
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}" + CHAT_TEMPLATE
)
NO_GENERATION_PROMPT = CHAT_TEMPLATE.split("{% if add_generation_prompt")[0]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"

# template, BOS, EOS, the prompt, the trained text of the answer "Blue."
WAYS = {
    "chatml": (CHAT_TEMPLATE, None, "<|im_end|>", ASKED, "Blue.<|im_end|>"),
    "headers and BOS": (HEADERS, "<s>", "<eot>", "<s><h>user</h>\n\nSky?<eot><h>assistant</h>\n\n", "Blue.<eot>"),
    "brackets, no header": (BRACKETS, "<s>", "</s>", "<s>[INST] Sky? [/INST]", " Blue.</s>"),
    "another name, newline": (OTHER_NAME, "<s>", "<end>", "<s><user>\nSky?<end>\n<model>\n", "Blue.<end>"),
    "EOS after each turn": (LINES, None, "</s>", "<user>\nSky?</s>\n<assistant>\n", "Blue.</s>"),
    "EOS at the end of all": (END_OF_ALL, None, "</s>", "<user>\nSky?<end>\n<assistant>\n", "Blue.<end>\n</s>"),
    "prompt opens thinking": (OPENS_THINKING, None, "<|im_end|>", ASKED, "Blue.<|im_end|>"),
    "empty thinking": (EMPTY_THINKING, None, "<|im_end|>", ASKED, "<think></think>Blue.<|im_end|>"),
    "thinking switched off": (NO_THINKING, None, "<|im_end|>", ASKED + "<think></think>", "Blue.<|im_end|>"),
    "system turn of its own": (
        DEFAULT_SYSTEM,
        None,
        "<|im_end|>",
        "<|im_start|>system\nBe brief.<|im_end|>\n" + ASKED,
        "Blue.<|im_end|>",
    ),
    "no generation prompt": (
        NO_GENERATION_PROMPT,
        None,
        "<|im_end|>",
        "<|im_start|>user\nSky?<|im_end|>\n",
        "<|im_start|>assistant\nBlue.<|im_end|>",
    ),
    "no special token": (PLAIN, "<s>", "</s>", "user: Sky?\nassistant: ", "Blue.\n"),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def tokenizer_of(template, bos=None, eos="<|im_end|>", pad=None):
    tokenizer = make_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *SPECIAL]})
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    tokenizer.pad_token = pad or "<pad>"
    return tokenizer


def prepare(rows, tokenizer, on_bad_row="error"):
    return prepare_preferences(
        load_rows(rows), tokenizer, truncation=TruncationPolicy(max_length=None), on_bad_row=on_bad_row
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_prompt_and_trained_tokens(way, pad_is_eos):
    """One BOS where the template writes it, one end token, trained also if padding is the same token."""
    template, bos, eos, prompt, answer = WAYS[way]
    tokenizer = tokenizer_of(template, bos, eos, pad=eos if pad_is_eos else None)
    prepared, report = prepare([ROW], tokenizer)
    row = prepared[0]
    assert tokenizer.decode(row["prompt_input_ids"]) == prompt
    assert tokenizer.decode(row["chosen_input_ids"]) == answer
    assert row["chosen_loss_mask"] == [True] * len(row["chosen_input_ids"])
    ids = row["prompt_input_ids"] + row["chosen_input_ids"]
    assert ids == tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    assert bos is None or ids.count(tokenizer.bos_token_id) == (bos in template or "bos_token" in template)
    assert row["chosen_input_ids"].count(tokenizer.eos_token_id) == (way != "no special token")
    assert report.counts["num_without_eos"] == (2 if way == "no special token" else 0)
    assert report.counts["num_reworded_prompts"] == (2 if way == "prompt opens thinking" else 0)


def test_a_fault_of_the_template_is_one_error_whatever_bad_rows_do():
    """No row could be trained: the error names the tokenizer, not the rows."""
    several = {"rag": CHAT_TEMPLATE, "tool_use": CHAT_TEMPLATE}
    faults = [
        (None, "has no chat template"),
        ("{% if %}", "is no template"),
        (several, "rag, tool_use, and no default"),
    ]
    for template, problem in faults:
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template
        for on_bad_row in ("error", "drop"):
            with pytest.raises(DataError, match=problem) as caught:
                prepare(make_rows(3), tokenizer, on_bad_row)
            assert "set tokenizer.chat_template" in str(caught.value)


def test_a_template_for_tools_among_several():
    """transformers takes the template `tool_use` for rows with tools."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": "{{ tools | tojson }}" + CHAT_TEMPLATE}
    prepared, _ = prepare([{**ROW, "tools": '[{"name": "look"}]'}, {**ROW, "tools": None}], tokenizer)
    texts = [tokenizer.decode(row["prompt_input_ids"]) for row in prepared]
    assert texts == ['[{"name": "look"}]' + ASKED, ASKED]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('no users') }}", "no users"),
        ("{{ messages[0]['image'].path }}", "no attribute 'image'"),
        ("{{ 'a' + messages }}", "can only concatenate"),
        ("{{ 1 // (messages | length - 1) }}", "division"),
        ("{{ messages | length | max }}", "not iterable"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages | length }} messages: " + CHAT_TEMPLATE, "no turn can be trained"),
        (CHAT_TEMPLATE.split("{% endfor")[0] + "<|im_end|>{% endfor %}", "end token <|im_end|> twice"),
    ],
)
def test_whatever_a_template_does_is_a_problem_of_the_row(template, problem):
    with pytest.raises(DataError, match=r"1 of 1 rows") as caught:
        prepare([ROW], make_tokenizer(template))
    assert "row 0, column " in str(caught.value)
    assert problem in str(caught.value)


def test_what_the_template_does_not_read_is_in_the_report():
    rows = [{**ROW, "chosen": [{"role": "assistant", "content": "Blue.", "thinking": "It is day.", "name": "Bo"}]}]
    _, report = prepare(rows, make_tokenizer())
    assert report.ignored_columns == ("messages.name", "messages.thinking")


WITHOUT_SYSTEM = CHAT_TEMPLATE.replace("for m in messages", "for m in messages if m.role != 'system'")
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, CHAT_TEMPLATE.replace("m['content']", "m['content'] | trim | upper")]
)
def test_turns_that_a_template_words_in_its_own_way_are_there(template):
    tokenizer = make_tokenizer(template)
    turns = [SYSTEM, {"role": "user", "content": " Sky? "}]
    assert "ASSISTANT." in open_prompt(tokenizer, ChatPreference(turns, (), ())).upper()


def test_a_turn_that_the_template_drops_is_a_problem_of_the_row():
    """The last word of the system turn is in the text all the same: in the header of the answer."""
    tokenizer = make_tokenizer(WITHOUT_SYSTEM)
    rows = load_rows([ROW, {**ROW, "prompt": [SYSTEM, *ROW["prompt"]]}])
    with pytest.raises(DataError, match="1 of 2 rows") as error:
        prepare_preferences(rows, tokenizer, truncation=TruncationPolicy())
    assert "row 1, column 'prompt': the chat template leaves out the text of the system turn" in str(error.value)


def test_a_result_of_a_tool_that_the_template_drops_is_a_problem_of_the_row():
    tokenizer = make_tokenizer(CHAT_TEMPLATE.replace("for m in messages", "for m in messages if m.role != 'tool'"))
    answer = [ROW["chosen"][0], {"role": "tool", "content": "at noon"}, ROW["chosen"][0]]
    with pytest.raises(DataError, match="column 'chosen': the chat template leaves out the text of the tool turn"):
        prepare_preferences(load_rows([{**ROW, "chosen": answer}]), tokenizer, truncation=TruncationPolicy())


PARTS = "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"


@pytest.mark.parametrize("parts", [PARTS, PARTS.replace("p.text", "p.text | upper")])
def test_text_around_an_image_is_there(parts):
    """An image stands between two parts, so their joined text is nowhere; a template that reads parts gets parts."""
    tokenizer = make_tokenizer(CHAT_TEMPLATE.replace("{{ m['content'] }}", parts))
    content = [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": " here?"}]
    row = ChatPreference([{"role": "user", "content": content}], (), ())
    assert "LOOK: <IMAGE> HERE?" in open_prompt(tokenizer, row).upper()


def test_a_part_that_the_template_drops_is_a_problem_of_the_row():
    first = "{{ '<image>' if m.content[0].type == 'image' else m.content[0].text }}"
    tokenizer = make_tokenizer(CHAT_TEMPLATE.replace("{{ m['content'] }}", first))
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    row = ChatPreference([{"role": "user", "content": content}], (), ())
    with pytest.raises(RowProblem, match="leaves out the text of the user turn"):
        open_prompt(tokenizer, row)
