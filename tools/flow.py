"""Fill in what the pages of docs/ take from the code: `python tools/flow.py` (that is `make docs-tables`).

A page says `<!-- generated: NAME -->` and `<!-- end -->`; what stands between them is written here. The blocks of
docs/flow.md and docs/flow-grpo.md are recorded from runs that walk one batch through every room of `DPOTrainer` and
`GRPOTrainer`, watched as `burnish trace` watches them. Their model is tiny, float64, and its weights are sines, so that
the pages are the same byte for byte on every machine.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from answer_tables import (
    kto_fields_table,
    sft_fields_table,
    supervised_losses_table,
    trl_kto_fields_table,
    trl_sft_fields_table,
    unpaired_losses_table,
)
from api_page import api_page, parcels_table
from flow_grpo import GRPO_FLOW, record_grpo
from losses_table import divergences_table, losses_table
from policy_tables import advantages_table, aggregations_table, importance_table, kl_table, policy_losses_table
from recording import WORDS, log_lines, named_means, number, record_step, step_lines, tensors
from reward_tables import reward_fields_table, reward_losses_table
from transformers import TrainingArguments
from trl_tables import (
    default_of,
    own_fields_table,
    own_grpo_fields_table,
    own_ppo_fields_table,
    rows_of,
    trl_fields_table,
    trl_grpo_fields_table,
    trl_ppo_fields_table,
    unbuilt_table,
)

from burnish import DPOConfig, DPOTrainer, PolicyConfig
from burnish.metrics import EXPLANATIONS
from burnish.trainers.config import REFUSED

DOCS = Path(__file__).parents[1] / "docs"
ROWS = [("what colour is the sky ?", "it is blue", "green and red"), ("what is green ?", "grass", "the sky is not")]
ROWS += [("what is red ?", "not the sky", "grass")]

# The run.


@functools.cache
def record() -> Mapping[str, Any]:
    """What left each room in one optimizer step: three pairs, in micro-batches of two and one."""
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in ROWS
    ]
    seen, witness = record_step(DPOTrainer, DPOConfig, rows, per_device_train_batch_size=2)
    return {**seen, "PairLogps": witness["dpo_loss"].received["pair"]}


# The blocks of docs/flow.md.


def _prepared(seen: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for (prompt, chosen, rejected), row in zip(ROWS, seen["_prepare_dataset"], strict=True):
        lines.append(f"row {row['row_id']}: {prompt!r}, chosen {chosen!r}, rejected {rejected!r}")
        for column in ("prompt", "chosen", "rejected"):
            ids = row[f"{column}_input_ids"]
            lines.append(f"    {column + '_input_ids':20} {ids}  {' '.join(WORDS[i] for i in ids)}")
        lines += [
            f"    {side + '_loss_mask':20} {[int(i) for i in row[f'{side}_loss_mask']]}"
            for side in ("chosen", "rejected")
        ]
    return lines


def _collated(seen: Mapping[str, Any]) -> list[str]:
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "loss_mask", "prompt_index", "row_id")
    legends = ("(P, L)", "(P, L)", "(N, T)", "(N, T)", "(N, T)", "(N,)", "(N,)", "(M, 2)")
    return tensors({name: seen["take_parcels"][0][name] for name in (*names, "pairs")}, *legends)


def _step(seen: Mapping[str, Any]) -> list[str]:
    return step_lines(seen, [len(parcel.pairs) for parcel in seen["get_batch_samples"][0]], "pairs")


def _stats(seen: Mapping[str, Any]) -> list[str]:
    stats = seen["concatenated_forward"]
    named = {"logps": stats.logps, "mask": stats.mask, "entropy": stats.entropy}
    extra = {f"extra[{name!r}]": tensor for name, tensor in stats.extra.items()}
    return [*tensors({**named, **extra}, "(N, T)"), *tensors({"sequence_sum()": stats.sequence_sum()}, "(N,)")]


def _loss(seen: Mapping[str, Any]) -> list[str]:
    pair = seen["PairLogps"]
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected", "chosen_length", "rejected_length", "logratio_diff")
    received = tensors({f"pair.{name}": getattr(pair, name) for name in names}, "(M,)")
    returned = tensors({f"{term.name}, per {term.per}": term.losses for term in seen["dpo_loss"]}, "(M,)")
    return ["receives", *received, "", "returns", *returned]


def _division(seen: Mapping[str, Any]) -> list[str]:
    total, pairs = seen["dpo_loss"][0].losses.sum().item(), seen["get_batch_samples"][1]["pair"].item()
    share = seen["compute_loss"].item()
    assert math.isclose(total / pairs, share, rel_tol=1e-12)
    return [f"{number(total)} / {pairs:g} = {number(share)}"]


# The tables of the other pages.


def metrics_table() -> str:
    """Every metric with the sentence that explains it."""
    return rows_of("| metric | what it is |", [(f"`{name}`", text) for name, text in EXPLANATIONS.items()])


def refused_table() -> str:
    """Options of TrainingArguments that are refused, and why."""
    return rows_of(
        "| option | allowed | why |",
        [(f"`{name}`", f"`{allowed[0]!r}`", reason) for name, (allowed, reason) in REFUSED.items()],
    )


def changed_defaults_table() -> str:
    """Fields of TrainingArguments whose default differs here."""
    theirs = {field.name: default_of(field) for field in fields(TrainingArguments)}
    changed = [f for f in fields(PolicyConfig) if f.name in theirs and default_of(f) != theirs[f.name]]
    return rows_of(
        "| field | transformers | here | meaning |",
        [(f"`{f.name}`", f"`{theirs[f.name]}`", f"`{default_of(f)}`", f.metadata["help"]) for f in changed],
    )


FLOW: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "_prepare_dataset": _prepared,
    "take_parcels": _collated,
    "get_batch_samples": _step,
    "concatenated_forward": _stats,
    "compute_ref_log_probs": lambda seen: tensors({"ref_logps": seen["compute_ref_log_probs"]}, "(N, T)"),
    "dpo_loss": _loss,
    "get_batch_loss_metrics": lambda seen: named_means(seen["get_batch_loss_metrics"].metrics),
    "compute_loss": _division,
    "log": lambda seen: log_lines(seen["log"]),
}
TABLES: dict[str, Callable[[], str]] = {
    "api": api_page,
    "parcels": parcels_table,
    "losses": losses_table,
    "divergences": divergences_table,
    "policy-losses": policy_losses_table,
    "reward-losses": reward_losses_table,
    "reward-fields": reward_fields_table,
    "supervised-losses": supervised_losses_table,
    "sft-fields": sft_fields_table,
    "trl-sft-fields": trl_sft_fields_table,
    "unpaired-losses": unpaired_losses_table,
    "kto-fields": kto_fields_table,
    "trl-kto-fields": trl_kto_fields_table,
    "aggregations": aggregations_table,
    "advantages": advantages_table,
    "kl": kl_table,
    "importance": importance_table,
    "metrics": metrics_table,
    "trl-fields": trl_fields_table,
    "own-fields": own_fields_table,
    "trl-grpo-fields": trl_grpo_fields_table,
    "own-grpo-fields": own_grpo_fields_table,
    "trl-ppo-fields": trl_ppo_fields_table,
    "own-ppo-fields": own_ppo_fields_table,
    "unbuilt": unbuilt_table,
    "refused": refused_table,
    "changed-defaults": changed_defaults_table,
}
BLOCK = re.compile(r"<!-- generated: (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def generate(name: str) -> str:
    """The content of a block: a table, or `flow:ROOM` and `flow-grpo:ROOM`."""
    page, _, room = name.partition(":")
    if not room:
        return TABLES[name]()
    rooms, recorded = {"flow": (FLOW, record), "flow-grpo": (GRPO_FLOW, record_grpo)}[page]
    return "\n".join(["```text", *rooms[room](recorded()), "```"])


def fill(text: str) -> str:
    """A page with its generated blocks made anew."""
    return BLOCK.sub(lambda block: f"<!-- generated: {block[1]} -->\n\n{generate(block[1])}\n\n<!-- end -->", text)


def main() -> None:
    """Write the pages that changed."""
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if fill(text) != text:
            path.write_text(fill(text), encoding="utf-8")
            sys.stdout.write(f"written: docs/{path.name}\n")


if __name__ == "__main__":
    main()
