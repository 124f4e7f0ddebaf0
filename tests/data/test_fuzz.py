"""A thousand broken rows are each named, and a thousand sound rows beside them raise no alarm.

Broken rows are made from sound rows of every layout. Columns are JSON (`datasets.Json`), so that one table holds text,
messages and whatever else in the same column. Everything is drawn from a seed.
"""

import copy
import itertools
import json
import random
import time

import datasets
import pytest
from datasets import Dataset, Features, Json, disable_progress_bars

from burnish.data.errors import DataError
from burnish.data.lint import lint_preferences
from burnish.data.sources import load_rows
from burnish.data.tokenize import prepare_preferences
from burnish.data.truncate import TruncationPolicy
from conftest import make_tokenizer

pytestmark = pytest.mark.gallery  # a gallery: make test has one of each kind elsewhere

disable_progress_bars()
NUM_ROWS, CHUNK = 1000, 100
TEMPLATE = (
    "{{ mood }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.reasoning_content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENIZER = make_tokenizer(TEMPLATE)
WORDS = [
    "sky",
    "blue",
    "naïve café",
    "天空",
    "42",
    "<b>x</b>",
    '{"a": 1}',
    "line\nbreak",
    "🙂",
    " lead",
    "trail ",
    "a\tb",
]
COLUMNS = ("prompt", "chosen", "rejected", "conversations", "system", "tools", "chat_template_kwargs")
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": None}}}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def openai(role, content):
    return {"role": role, "content": content}


def sharegpt(role, content):
    return {"from": {"user": "human", "assistant": "gpt", "tool": "observation"}.get(role, role), "value": content}


def call(draw, arguments):
    wrapped = {"id": draw.choice([None, "1"]), "function": {"name": "look", "arguments": arguments}}
    return draw.choice([wrapped, {"name": "look", "arguments": arguments}])


class Sound:
    """Sound rows of each layout, drawn by `draw`; texts are numbered, so that no two are the same."""

    def __init__(self, draw):
        self.draw, self.numbers = draw, itertools.count()

    def text(self):
        return f"{self.draw.choice(WORDS)} {next(self.numbers)}"

    def turns(self, turn):
        """A prompt, and two answers to it."""
        history = [turn(role, self.text()) for role in ("user", "assistant") * self.draw.randint(0, 2)]
        system = [turn("system", self.text())] * self.draw.randint(0, 1)
        answers = ([turn("assistant", self.text())] for _ in range(2))
        return [*system, *history, turn("user", self.text())], *answers

    def texts(self):
        return {"prompt": self.text(), "chosen": self.text(), "rejected": self.text()}

    def messages(self, turn=openai):
        prompt, chosen, rejected = self.turns(turn)
        middle = [turn("assistant", self.text()), turn("user", self.text())]
        return {"prompt": prompt, "chosen": middle * self.draw.randint(0, 1) + chosen, "rejected": rejected}

    def messages_of_sharegpt(self):
        return self.messages(sharegpt)

    def single_messages(self):
        prompt, (chosen,), (rejected,) = self.turns(self.draw.choice([openai, sharegpt]))
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    def text_before_messages(self):
        _, chosen, rejected = self.turns(openai)
        return {"prompt": self.text(), "chosen": chosen, "rejected": rejected}

    def text_and_messages_that_begin_with_it(self):
        prompt = self.text()
        chosen, rejected = ([openai("user", prompt), openai("assistant", self.text())] for _ in range(2))
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    def messages_before_text(self):
        return {"prompt": self.turns(openai)[0], "chosen": self.text(), "rejected": self.text()}

    def conversations(self):
        prompt, (chosen,), (rejected,) = self.turns(sharegpt)
        if prompt[0]["from"] == "system":
            return {"conversations": prompt[1:], "system": prompt[0]["value"], "chosen": chosen, "rejected": rejected}
        return {"conversations": prompt, "chosen": [chosen], "rejected": rejected}

    def parts(self):
        row = self.messages()
        turn = self.draw.choice(row[self.draw.choice(["prompt", "chosen", "rejected"])])
        turn["content"] = [{"type": "text", "text": turn["content"]}, {"type": "text", "text": self.text(), "x": None}]
        return row

    def agent(self):
        arguments = self.draw.choice([{"at": self.text(), "day": None}, json.dumps({"at": self.text()}), {}])
        calls = [call(self.draw, arguments)]
        tools = self.draw.choice([[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
        result = {"role": "tool", "content": self.draw.choice(["", self.text()]), "name": "look", "tool_call_id": "1"}
        chosen = [{"role": "assistant", "content": self.draw.choice([None, "", self.text()]), "tool_calls": calls}]
        if self.draw.random() < 0.7:
            chosen += [result, {**openai("assistant", self.text()), "reasoning_content": self.text()}]
        return {**self.messages(), "chosen": chosen, "tools": tools}

    def variables(self):
        value = self.draw.choice([{"mood": self.text(), "other": None}, json.dumps({"mood": "calm"}), {}])
        return {**self.messages(), "chat_template_kwargs": value}

    def extra_keys(self):
        row = self.messages()
        row["chosen"][0]["annotator"] = self.draw.choice([5, "Bo", {"a": [1]}])
        return row

    def implicit_texts(self):
        prompt = f"Human: {self.text()}\nBot:"
        return {"chosen": f"{prompt} {self.text()}", "rejected": f"{prompt} {self.text()}"}

    def implicit_messages(self):
        prompt, chosen, rejected = self.turns(openai)
        return {"chosen": prompt + chosen, "rejected": copy.deepcopy(prompt) + rejected}


WITH_PROMPT = [
    *("texts", "messages", "messages_of_sharegpt", "single_messages", "text_before_messages", "messages_before_text"),
    *("text_and_messages_that_begin_with_it", "conversations", "parts", "agent", "variables", "extra_keys"),
]
IMPLICIT = ["implicit_texts", "implicit_messages"]

NO_TEXT = [None, 5, -2.5, True, {"a": 1}, {}, [], [5], [None], [[]], "", " ", "\n\t", "a\x00b", "\x00"]
NO_TURN = [None, 5, "text", [], {}, {"a": 1}, {"role": "user"}, {"role": None, "content": "a"}, {"content": "a"}]
NO_ROLE = ["User", "human being", "", 5, None, ["user"], {"a": 1}]
NO_CALLS = [
    "look",
    5,
    {"function": {"name": "look"}},
    [5],
    [[]],
    [{}],
    [{"function": "look"}],
    [{"function": {"arguments": {}}}],
    [{"function": {"name": 5}}],
    [{"function": {"name": "look", "arguments": "sky"}}],
    [{"function": {"name": "look", "arguments": [1]}}],
    [{"function": {"name": "look", "arguments": 5}}],
    [{"function": {"name": "look", "arguments": '{"a": NaN}'}}],
    [{"function": {"name": "look", "arguments": '{"a": "\\ud800"}'}}],
    [{"function": {"name": "look", "arguments": {"a": "\x00"}}}],
    '[{"function": {"name": "look"',
    "[" * 5000,
]
NO_TOOLS = [
    "look",
    5,
    True,
    {"name": "look"},
    [5],
    [[]],
    ["look"],
    [{}],
    [{"function": 5}],
    '[{"name": ""}]',
    "[" * 5000,
]
NO_VARIABLES = ["calm", 5, [1], "[1]", {"tokenize": True}, {"tools": [TOOL]}, {"moods": 1}, {"mood": "\x00"}, '{"mood"']


def text_slots(row):
    """Where texts stand that must not be empty."""
    for column, value in row.items():
        if column in ("tools", "chat_template_kwargs", "system"):
            continue
        if isinstance(value, str):
            yield (column,)
        for index, turn in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(turn, dict) or "system" in (turn.get("role"), turn.get("from")):
                continue
            if "tool_calls" not in turn and turn.get("role") != "tool":
                yield (column, index, "value" if "from" in turn else "content")


def turn_slots(row):
    return [
        (column, index)
        for column in ("prompt", "chosen", "rejected", "conversations")
        for index, _ in enumerate(row.get(column, "") if isinstance(row.get(column), list) else ())
    ]


def put(row, slot, value):
    *place, key = [step for step in slot if step is not None]
    inner = row
    for step in place:
        inner = inner[step]
    inner[key] = value


def turn_at(row, slot):
    return row[slot[0]][slot[1]]


def break_text(draw, row):
    slot = draw.choice(list(text_slots(row)))
    put(row, slot, draw.choice(NO_TEXT))
    return {slot[0]}


def break_turn(draw, row):
    slots = turn_slots(row)
    if not slots:
        return None
    slot = draw.choice(slots)
    put(row, slot, draw.choice(NO_TURN))
    return {slot[0]}


def break_role(draw, row):
    slots = turn_slots(row)
    if not slots:
        return None
    slot = draw.choice(slots)
    key = "from" if "from" in turn_at(row, slot) else "role"
    turn_at(row, slot)[key] = draw.choice(NO_ROLE)
    return {slot[0]}


def break_order(draw, row):
    """A user's, a system's or a tool's turn at the end of an answer, or an assistant's at the end of a prompt."""
    columns = [
        column for column in ("prompt", "chosen", "rejected", "conversations") if isinstance(row.get(column), list)
    ]
    if not columns or row.keys() == {"chosen", "rejected"}:
        return None
    column = draw.choice(columns)
    role = "assistant" if column in ("prompt", "conversations") else draw.choice(["user", "system", "tool"])
    row[column].append(openai(role, "last"))
    return {column}


def break_part(draw, row):
    slots = [slot for slot in text_slots(row) if len(slot) == 3]
    if not slots:
        return None
    slot = draw.choice(slots)
    kinds = [{"type": "audio", "audio": "a"}, {"type": "text"}, {"text": "a"}, {"type": "text", "text": 5}, "a"]
    put(row, slot, [{"type": "text", "text": "a"}, draw.choice(kinds)])
    return {slot[0]}


def break_calls(draw, row):
    """Calls that are none, or those of a turn that is no assistant's."""
    slots = turn_slots(row)
    if not slots:
        return None
    slot = draw.choice(slots)
    turn = turn_at(row, slot)
    is_assistant = turn.get("role") == "assistant" or turn.get("from") == "gpt"
    turn["tool_calls"] = draw.choice(NO_CALLS) if is_assistant else [{"name": "look", "arguments": {}}]
    return {slot[0]}


def break_tools(draw, row):
    row["tools"] = draw.choice(NO_TOOLS)
    return {"tools"}


def break_variables(draw, row):
    row["chat_template_kwargs"] = draw.choice(NO_VARIABLES)
    return {"chat_template_kwargs"}


def break_layout(draw, row):
    """One answer as text and the other as messages; two prompts; a text where turns are wanted."""
    if "conversations" in row and draw.random() < 0.5:
        row["prompt"] = draw.choice(["Sky?", [openai("user", "Sky?")]])
        return {"prompt"}
    column = draw.choice(["chosen", "rejected"])
    row[column] = [openai("assistant", "b")] if isinstance(row[column], str) else "b"
    return {"chosen", "rejected"}


def break_preference(draw, row):
    row["rejected"] = copy.deepcopy(row["chosen"])
    return {"rejected"}


def break_prefix(draw, row):
    """Another question than the one that the answers begin with, or answers that begin with nothing in common."""
    if row.keys() == {"chosen", "rejected"}:
        row["chosen"] = [openai("user", "other"), *row["chosen"][-1:]] if isinstance(row["chosen"], list) else "other"
        return {"prompt"}
    if not isinstance(row.get("prompt"), str) or not isinstance(row["chosen"], list) or len(row["chosen"]) < 2:
        return None
    row["prompt"] += "!"
    return {"chosen"}


FAULTS = [
    break_text,
    break_turn,
    break_role,
    break_order,
    break_part,
    break_calls,
    break_tools,
    break_variables,
    break_layout,
    break_preference,
    break_prefix,
]


def broken_rows(draw, layouts, num_rows):
    """(row, columns that may be named), every fault of every layout in turn."""
    sound = Sound(draw)
    for layout, fault in itertools.cycle(itertools.product(layouts, FAULTS)):
        row = copy.deepcopy(getattr(sound, layout)())
        columns = fault(draw, row)
        if columns is None:
            continue
        yield row, columns
        num_rows -= 1
        if num_rows == 0:
            return


def table(rows, columns):
    cells = {column: [json.dumps(row.get(column)) for row in rows] for column in columns}
    return Dataset.from_dict(cells, features=Features({column: Json() for column in columns}))


def prepare(dataset, on_bad_row="error", **limits):
    return prepare_preferences(dataset, TOKENIZER, truncation=TruncationPolicy(**limits), on_bad_row=on_bad_row)


@pytest.mark.parametrize(("layouts", "columns"), [(WITH_PROMPT, COLUMNS), (IMPLICIT, COLUMNS[1:3])])
def test_broken_rows_are_named_and_sound_rows_are_kept(layouts, columns):
    """In each chunk of 200 rows every second one is broken."""
    draw = random.Random(0)
    num_rows = NUM_ROWS if layouts == WITH_PROMPT else NUM_ROWS // 5
    broken = list(broken_rows(draw, layouts, num_rows))
    makers = itertools.cycle([getattr(Sound(draw), layout) for layout in layouts])
    for start in range(0, num_rows, CHUNK):
        chunk = broken[start : start + CHUNK]
        rows = [row for bad, _ in chunk for row in (bad, next(makers)())]
        wanted = dict.fromkeys([*columns, *(key for row in rows for key in row)])
        prepared, report = prepare(table(rows, wanted), "drop")
        named = {bad.row: bad for bad in report.bad_rows}
        alarms = {row: str(bad) for row, bad in named.items() if row % 2}
        missed = [bad for index, (bad, _) in enumerate(chunk) if 2 * index not in named]
        assert (alarms, missed) == ({}, [])
        assert prepared["row_id"][:] == list(range(1, 2 * CHUNK, 2))
        for index, (row, allowed) in enumerate(chunk):
            bad = named[2 * index]
            mixed = {"chosen", "rejected"} if bad.problem.startswith("mixed layout") else set()  # either is the odd one
            assert bad.column in allowed | mixed, (row, str(bad))
            assert bad.problem
            assert bad.value
            assert bad.fix.endswith(".")
            assert len(str(bad)) < 600


def test_error_names_the_first_rows_and_counts_all():
    rows = [row for row, _ in broken_rows(random.Random(1), WITH_PROMPT, 150)]
    with pytest.raises(DataError, match="150 of 150 rows cannot be trained on") as caught:
        prepare(table(rows, COLUMNS))
    lines = str(caught.value).splitlines()
    assert len(lines) <= 12
    assert all(line.startswith(f"  row {index}, column ") for index, line in enumerate(lines[1:9]))


def test_broken_rows_of_a_list_are_named_all_at_once():
    """Whatever types they have: none of them keeps the rows from being read."""
    broken = list(broken_rows(random.Random(6), WITH_PROMPT, 220))
    sound = itertools.cycle([getattr(Sound(random.Random(7)), layout) for layout in WITH_PROMPT])
    rows = [row for bad, _ in broken for row in (bad, next(sound)())]
    prepared, report = prepare(load_rows(rows), "drop")
    assert prepared["row_id"][:] == list(range(1, 440, 2))
    named = {bad.row: bad for bad in report.bad_rows}
    assert report.num_dropped == 220
    for index, (row, allowed) in list(enumerate(broken))[: len(named)]:
        mixed = {"chosen", "rejected"} if named[2 * index].problem.startswith("mixed layout") else set()
        assert named[2 * index].column in allowed | mixed, (row, str(named[2 * index]))


def test_extra_keys_are_counted():
    sound = Sound(random.Random(2))
    _, report = prepare(table([sound.extra_keys() for _ in range(3)], COLUMNS))
    assert report.ignored_columns == ("messages.annotator",)


def test_repeated_rows_are_a_finding_and_no_error():
    sound = Sound(random.Random(3))
    rows = [sound.texts(), sound.agent(), sound.implicit_messages()["chosen"] and sound.messages()]
    prepared, _ = prepare(table([*rows, *rows, rows[0]], COLUMNS))
    findings = {finding.code: finding for finding in lint_preferences(prepared)}
    assert findings["duplicate_rows"].rows == (3, 4, 5, 6)


def test_a_megabyte_in_a_cell():
    """Trained on as far as the limits go, at the speed of the tokenizer: nothing of ours looks at each place twice."""
    words, signs = "a " * 500_000 + "a", "x" + "天" * 333_000
    rows = [
        {"prompt": "a", "chosen": words, "rejected": "c"},
        {"prompt": "a", "chosen": [openai("assistant", "b")], "rejected": [openai("assistant", signs)]},
    ]
    start = time.monotonic()
    prepared, report = prepare(table(rows, COLUMNS), max_completion_length=50)
    assert (len(prepared), report.counts["num_completions_cut"]) == (2, 2)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("empty", [[], {"prompt": [], "chosen": [], "rejected": []}])
def test_no_rows_at_all(empty):
    with pytest.raises(DataError, match=r"no rows|is empty"):
        prepare(load_rows(empty) if isinstance(empty, list) else Dataset.from_dict(empty))
