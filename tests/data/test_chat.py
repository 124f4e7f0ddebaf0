import pytest

from burnish.data.chat import open_prompt, render_preference
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
SHOW_CALLS = (
    "{% for c in (m.tool_calls or [])[:1] %}<tool>{{ c.function.name }} {{ c.function.arguments | tojson }}</tool>"
    "{% endfor %}{{ m['content'] }}"
)
CALLS = CHAT_TEMPLATE.replace("{{ m['content'] }}", SHOW_CALLS)
TOOLS = "{{ mood }}{% if tools %} {{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE
TOOL = {"name": "look"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
AGENT = [
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "#00F"},
    {"role": "assistant", "content": "It is blue."},
]
TWICE = [{"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}]


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


def test_turns_that_lose_their_thinking_later_are_untrained_and_counted():
    """The first answer loses what it says in its thinking block once a turn follows."""
    tokenizer = make_tokenizer(STRIPS_HISTORY)
    first, *rest = answers("b", "why", "c")
    row = ChatPreference(QUESTION, [{**first, "thinking": "t"}, *rest], answers("d"))
    chosen, rejected = render_preference(tokenizer, row)
    assert trained(chosen) == ["<think>\n\n</think>\n\nc<|im_end|>\n"]
    assert chosen.num_untrained_turns == 1
    assert rejected.num_untrained_turns == 0


def test_turns_that_lose_an_empty_opener_later_are_trained():
    """All that the row says is there: only the template's own empty block goes, once a turn follows."""
    chosen, _ = render_preference(
        make_tokenizer(STRIPS_HISTORY), ChatPreference(QUESTION, answers("b", "why", "c"), answers("d"))
    )
    assert trained(chosen) == ["b<|im_end|>\n", "<think>\n\n</think>\n\nc<|im_end|>\n"]
    assert chosen.num_untrained_turns == 0


def test_call_that_loses_an_empty_opener_is_trained_whole():
    """`<think>` and `<tool>` begin alike, and the turn does not end behind what they have in common."""
    template = STRIPS_HISTORY.replace("{{ m['content'] }}", SHOW_CALLS)
    chosen, _ = render_preference(make_tokenizer(template), ChatPreference(QUESTION, AGENT, answers("d")))
    assert trained(chosen)[0] == '<tool>look {"at": "sky"}</tool><|im_end|>\n'


def test_opener_and_answer_that_begin_alike():
    """The generation prompt ends with `<think>`, the answer begins with `<b>`: its `<` is trained."""
    row = ChatPreference(QUESTION, answers("<b>x</b>"), answers("c"))
    chosen, _ = render_preference(make_tokenizer(THINKING_OPENER), row)
    assert trained(chosen) == ["<b>x</b><|im_end|>\n"]


def test_turns_that_end_in_another_way_later_are_trained_without_their_end():
    end = "{{ '[end]' if loop.last and m.role == 'assistant' else '(more)' }}{% endfor %}"
    template = CHAT_TEMPLATE.replace("<|im_end|>\n{% endfor %}", end)
    chosen, _ = render_preference(
        make_tokenizer(template), ChatPreference(QUESTION, answers("b", "why", "c"), answers("d"))
    )
    assert trained(chosen) == ["b", "c[end]"]


def test_calls_are_trained_and_results_are_not():
    chosen, rejected = render_preference(make_tokenizer(CALLS), ChatPreference(QUESTION, AGENT, answers("d")))
    assert trained(chosen) == ['<tool>look {"at": "sky"}</tool><|im_end|>\n', "It is blue.<|im_end|>\n"]
    assert (chosen.num_untrained_turns, chosen.unread_keys) == (0, frozenset())
    assert trained(rejected) == ["d<|im_end|>\n"]


def test_answer_may_end_with_a_call():
    chosen, _ = render_preference(make_tokenizer(CALLS), ChatPreference(QUESTION, AGENT[:1], answers("d")))
    assert trained(chosen) == ['<tool>look {"at": "sky"}</tool><|im_end|>\n']


@pytest.mark.parametrize(
    "show",
    [
        "{{ c.function.arguments | tojson }}",
        "{{ c.function.arguments }}",
        "{{ '' + c.function.arguments }}",
        "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}"
        "{% endif %}",
    ],
)
def test_arguments_come_as_the_template_prints_them(show):
    """As a mapping if the template dumps it, as text of JSON if it wants text or would print Python."""
    template = CALLS.replace("{{ c.function.arguments | tojson }}", show)
    chosen, _ = render_preference(make_tokenizer(template), ChatPreference(QUESTION, AGENT, answers("d")))
    assert trained(chosen)[0] == '<tool>look {"at": "sky"}</tool><|im_end|>\n'


def test_tools_and_variables_reach_the_template():
    row = ChatPreference(QUESTION, answers("b"), answers("c"), tools=(TOOL,), template_kwargs={"mood": "calm"})
    chosen, _ = render_preference(make_tokenizer(TOOLS), row)
    assert chosen.text == 'calm [{"name": "look"}]' + HEAD + "b<|im_end|>\n"
    assert open_prompt(make_tokenizer(TOOLS), row) == 'calm [{"name": "look"}]' + HEAD


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_reaches_the_template_under_every_name(key, read):
    template = CHAT_TEMPLATE.replace("{{ m['content'] }}", f"{{{{ m.{read} }}}}|{{{{ m['content'] }}}}")
    row = ChatPreference(QUESTION, [{**answers("b")[0], key: "since"}], answers("c"))
    chosen, _ = render_preference(make_tokenizer(template), row)
    assert trained(chosen) == ["since|b<|im_end|>\n"]
    assert chosen.unread_keys == frozenset()


def test_keys_that_the_template_does_not_read_are_named(tokenizer):
    row = ChatPreference(QUESTION, [{**answers("b")[0], "thinking": "since"}], answers("c"))
    chosen, rejected = render_preference(tokenizer, row)
    assert chosen.unread_keys == rejected.unread_keys == {"thinking"}


@pytest.mark.parametrize(
    ("template", "row", "column", "problem"),
    [
        (CHAT_TEMPLATE, ChatPreference(QUESTION, AGENT, answers("d")), "chosen", "leaves out tool calls"),
        (CALLS, ChatPreference(QUESTION, TWICE, answers("d")), "chosen", "leaves out tool calls"),
        (CHAT_TEMPLATE, ChatPreference(QUESTION, answers("b"), answers("c"), tools=(TOOL,)), "tools", "not read tools"),
        (
            TOOLS,
            ChatPreference(QUESTION, answers("b"), answers("c"), template_kwargs={"moods": 1}),
            "chat_template_kwargs",
            "does not read moods, did you mean 'mood'",
        ),
        (
            CHAT_TEMPLATE.replace("m['content']", "m['content'][0]['text']"),
            ChatPreference(QUESTION, answers("blue"), answers("red")),
            "chosen",
            "leaves out the text of the answer",
        ),
        (
            NO_SYSTEM + CALLS,
            ChatPreference([{"role": "system", "content": "s"}, *QUESTION], AGENT, answers("c")),
            "prompt",
            "no system turn",
        ),
        (CHAT_TEMPLATE, ChatPreference(QUESTION, answers("b<|im_end|>"), answers("c")), "chosen", "<|im_end|> twice"),
        ("<|im_start|>" + CHAT_TEMPLATE, ChatPreference(QUESTION, answers("b"), answers("c")), "prompt", "token <|im"),
    ],
)
def test_what_a_template_leaves_out_or_doubles_is_a_problem_of_the_row(template, row, column, problem):
    tokenizer = make_tokenizer(template)
    tokenizer.bos_token = "<|im_start|>"
    with pytest.raises(RowProblem) as caught:
        render_preference(tokenizer, row)
    assert caught.value.column == column
    assert problem in caught.value.problem


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
