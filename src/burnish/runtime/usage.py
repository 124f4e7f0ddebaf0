"""How to use a model, as a snippet of its card; and what only whoever saves it knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from burnish.runtime.markdown import block

Names = str | Sequence[str] | None


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What the run directory does not say; the names are those of `transformers.Trainer.create_model_card`.

    Attributes:
        model_name: the heading.
        load_name: what `from_pretrained` takes in the example.
        step: the optimizer step whose weights these are.
        is_adapter: the weights are a PEFT adapter.
        chats: the tokenizer has a chat template.
    """

    model_name: str
    load_name: str
    step: int
    is_adapter: bool = False
    chats: bool = False
    language: Names = None
    license: str | None = None
    tags: Names = None
    finetuned_from: str | None = None
    tasks: Names = None
    dataset_tags: Names = None
    dataset: Names = None
    dataset_args: Names = None


def _generate(options: CardOptions) -> list[str]:
    """Ask a policy something."""
    asked = 'tokenizer("Once upon a time", return_tensors="pt")'
    lines: list[str] = []
    if options.chats:
        lines.append('messages = [{"role": "user", "content": "Hello!"}]')
        asked = "tokenizer.apply_chat_template(\n    messages, add_generation_prompt=True, return_dict=True, "
        asked += 'return_tensors="pt"\n)'
    return [*lines, f"inputs = {asked}", "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))"]


def _score(options: CardOptions) -> list[str]:
    """Have a reward model score an answer."""
    asked = 'tokenizer("2 + 2 = 4" + tokenizer.eos_token, return_tensors="pt")'
    lines: list[str] = []
    if options.chats:
        turns = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi! What can I do for you?"}]
        lines += ["messages = [", *(f"    {json.dumps(turn)}," for turn in turns), "]"]
        asked = 'tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")'
    return [*lines, f"inputs = {asked}", "print(float(model(**inputs).logits))"]


@dataclass(frozen=True)
class Kind:
    """What a class of models is for.

    Attributes:
        task: as the hub writes it.
        auto_class, reader: of transformers, for the model and for what reads its inputs.
        adapter_class: that of PEFT for an adapter; None where transformers loads one itself.
        adapter_options: what loading an adapter takes beside its name.
        run: the lines of the snippet behind loading.
    """

    task: str
    auto_class: str
    reader: str
    adapter_class: str | None
    adapter_options: str
    run: Callable[[CardOptions], list[str]]


POLICY = Kind("text-generation", "AutoModelForCausalLM", "AutoTokenizer", "AutoPeftModelForCausalLM", "", _generate)
# By what the class of the model is called.
KINDS = {
    "ForConditionalGeneration": Kind(
        "image-text-to-text", "AutoModelForImageTextToText", "AutoProcessor", "AutoPeftModel", "", lambda _: []
    ),
    "ForSequenceClassification": Kind(
        "text-classification",
        "AutoModelForSequenceClassification",
        "AutoTokenizer",
        None,
        ", num_labels=1, pad_token_id=tokenizer.pad_token_id",
        _score,
    ),
}


def kind_of(model_class: str) -> Kind:
    """What a model is for, by the name of its class; a policy unless it says otherwise.

    >>> kind_of("LlamaForSequenceClassification").task
    'text-classification'
    """
    return next((kind for ending, kind in KINDS.items() if model_class.endswith(ending)), POLICY)


def usage(model_class: str, options: CardOptions) -> str:
    """The section of the card that shows how to load and run the model."""
    kind = kind_of(model_class)
    own_class, extra = kind.auto_class, kind.adapter_options if options.is_adapter else ""
    imports = [f"from transformers import {own_class}, {kind.reader}"]
    if options.is_adapter and kind.adapter_class is not None:
        own_class = kind.adapter_class
        imports = [f"from peft import {own_class}", f"from transformers import {kind.reader}"]
    lines = [
        *imports,
        "",
        f"name = {json.dumps(options.load_name)}",
        f"tokenizer = {kind.reader}.from_pretrained(name)",
        f"model = {own_class}.from_pretrained(name{extra})",
    ]
    return "## How to use it\n\n" + block("python", [*lines, *kind.run(options)])
