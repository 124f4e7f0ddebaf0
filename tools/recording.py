"""What a recorded run is made of, and how its tensors are shown: a tiny model of sines, and a word for each token."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback

from burnish import PolicyConfig, PolicyTrainer
from burnish.trainers.witness import Witness, watched
from burnish.types import Mean

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_SENTENCE = "what colour is the sky ? grass it blue green and not red"
WORDS = ["<pad>", "<end>", "<user>", "<assistant>", *_SENTENCE.split()]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>", chat_template=TEMPLATE)


def make_model(phase: float) -> LlamaForCausalLM:
    """A Llama in float64 whose weights are sines that start at `phase`; no random generator, no file."""
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double()
    with torch.no_grad():
        for index, (name, weight) in enumerate(model.named_parameters()):
            if "norm" not in name:
                sines = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * (1.7 + 0.1 * index) + phase)
                weight.copy_(0.8 * sines.view_as(weight))
    return model


def record_step(
    trainer_class: type[PolicyTrainer],
    config_class: type[PolicyConfig],
    rows: Sequence[Mapping[str, Any]],
    *reward_funcs: Any,
    **options: Any,
) -> tuple[dict[str, Any], Witness]:
    """One step of two micro-batches: what each room gave, by its name, and the `log` line; and the witness of it."""
    with tempfile.TemporaryDirectory() as directory:
        config = config_class(
            output_dir=directory, max_steps=1, gradient_accumulation_steps=2, logging_steps=1, save_strategy="no",
            report_to="none", disable_tqdm=True, cpu_tuning="off", use_cpu=True, log_level="error", seed=7, **options,
        )  # fmt: skip
        witness = Witness()
        trainer = watched(trainer_class, witness)(
            make_model(0.0), *reward_funcs, config, ref_model=make_model(0.2), train_dataset=rows,
            processing_class=make_tokenizer(),
        )  # fmt: skip
        trainer.together.waits = False
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    log = {name: value for name, value in trainer.state.log_history[0].items() if name != "step"}
    return {**{crossing.room: crossing.returned for crossing in witness.crossings}, "log": log}, witness


def step_lines(seen: Mapping[str, Any], sizes: Sequence[int], unit: str) -> list[str]:
    """The parcels of the step, by their size in that unit, and the counts of the whole step."""
    lines = [f"parcels: {len(sizes)}, of {' and '.join(map(str, sizes))} {unit}"]
    return [*lines, *(f"counts[{name!r}] = {count.item():g}" for name, count in seen["get_batch_samples"][1].items())]


def number(value: float) -> str:
    """Three decimals; the sign of a zero is dropped."""
    return re.sub(r"^-(0\.0+)$", r"\1", f"{value:.3f}")


def values(tensor: torch.Tensor) -> str:
    """A tensor of at most two dimensions, a row a line; masks as 0 and 1."""
    if tensor.ndim == 0:
        return number(tensor.item()) if tensor.is_floating_point() else str(int(tensor))
    if tensor.ndim == 1:
        return f"[{' '.join(values(item) for item in tensor)}]"
    return "\n".join(values(row) for row in tensor)


def tensors(named: Mapping[str, torch.Tensor], *legends: str) -> list[str]:
    """Name, shape and values of each tensor; the last legend holds for all that follow."""
    lines: list[str] = []
    for index, (name, tensor) in enumerate(named.items()):
        lines.append(f"{name:24} {legends[min(index, len(legends) - 1)]} = {tuple(tensor.shape)}")
        lines += [f"    {line}" for line in values(tensor.detach()).split("\n")]
    return lines


def named_means(metrics: Mapping[str, Mean]) -> list[str]:
    """Metrics as (total, weight), a line each."""
    return [
        f"{name:22} total {number(mean.total.item()):>8}   weight {mean.weight.item():g}"
        for name, mean in metrics.items()
    ]


def log_lines(logs: Mapping[str, Any]) -> list[str]:
    """A log line; what is a time of this machine is left out."""
    shown = {name: number(value) if isinstance(value, float) else value for name, value in logs.items()}
    shown |= {"learning_rate": f"{logs['learning_rate']:g}"}
    seconds = ("time/", "reward_seconds/", "step_time")
    shown |= {name: "(seconds)" for name in logs if name.startswith(seconds)}
    shown |= {name: "(a second)" for name in logs if name.startswith("tokens_per_second/")}
    return [f"{name:22} {value}" for name, value in shown.items()]
