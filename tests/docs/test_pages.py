"""The pages name everything they promise to name, and their links lead somewhere."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from burnish import DPOConfig, GRPOConfig, KTOConfig, PPOConfig, SFTConfig, types
from burnish.compat import (
    GRPO_ALIASES,
    PPO_ALIASES,
    UNBUILT_DPO,
    UNBUILT_GRPO,
    UNBUILT_KTO,
    UNBUILT_PPO,
    UNBUILT_SFT,
)
from burnish.data.report import COUNTS
from burnish.losses import aggregations, divergences
from burnish.metrics import EXPLANATIONS, explain
from burnish.models.head import STATISTICS
from burnish.report.parcels import letters_of
from burnish.rewards.catalog import reward_functions
from burnish.trainers.config import REFUSED
from burnish.trainers.persistence import FREE_OPTIONS, FREE_PREFIXES
from burnish.types import PAIR_UNITS
from named_tables import TABLES

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from answer_tables import TRL_KTO_FIELDS, TRL_SFT_FIELDS
from trl_tables import OF_ROWS, TRL_FIELDS, TRL_GRPO_FIELDS, TRL_PPO_FIELDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

PAGES = sorted(path.name for path in DOCS.glob("*.md"))
FATES = {"used", "not read", "refused", "untested"}


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def table(page: str, head: str, *, after: str = "") -> dict[str, list[str]]:
    """The rows of the first table under `head` after a heading, by the name in their first cell."""
    text = read(page)
    lines = text[text.index(after) :].split(head, 1)[1].splitlines()[2:]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in takewhile(lambda line: line.startswith("|"), lines)]
    return {row[0].strip().strip("`"): [cell.strip() for cell in row[1:]] for row in rows}


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", read(page)):
        assert (DOCS / target).is_file(), f"{page} links to {target}"


def test_index_lists_every_page():
    assert set(re.findall(r"\]\(([^)]+\.md)\)", read("index.md"))) >= set(PAGES) - {"index.md", "decisions.md"}


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short(page):
    long = [line for line in read(page).splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


def test_every_field_of_training_arguments_has_a_fate():
    fate = {name: cells[0] for name, cells in table("trainer-arguments.md", "| field | fate | remark |").items()}
    missing = {field.name for field in fields(TrainingArguments)} - set(fate)
    assert not missing
    assert set(fate.values()) <= FATES
    assert {name for name, value in fate.items() if value == "refused"} == {*REFUSED, "fsdp"}


def test_reasons_of_refused_fields_are_the_codes():
    rows = table("trainer-arguments.md", "| field | fate | remark |")
    for name, (allowed, reason) in REFUSED.items():
        assert rows[name][1] == f"must be `{allowed[0]!r}`: {reason}"


def test_every_option_of_trl_is_listed():
    """Every option that is not built, and every one of ours, stands in exactly one of the two tables."""
    trl = set(table("coming-from-trl.md", "| field | in TRL | here |"))
    ours = {field.name for field in fields(DPOConfig)} - {field.name for field in fields(TrainingArguments)}
    own = set(table("coming-from-trl.md", "| field | default | what it does |"))
    assert trl == set(TRL_FIELDS) >= set(UNBUILT_DPO)
    assert ours <= trl | own
    assert not trl & own


@pytest.mark.parametrize("name", sorted(set(TRL_FIELDS)))
def test_options_do_what_the_table_says(tmp_path, name):
    fate = table("coming-from-trl.md", "| field | in TRL | here |")[name][1]
    if name in UNBUILT_DPO:
        assert fate.startswith("not built")
        DPOConfig(output_dir=str(tmp_path), **{name: UNBUILT_DPO[name][0]})
        with pytest.raises(ValueError, match=name):
            DPOConfig(output_dir=str(tmp_path), **{name: "on"})
    else:
        assert fate.startswith("works")
        assert name in {field.name for field in fields(DPOConfig)}


GRPO_FATES = ("coming-from-trl.md", "| field | default in TRL | fate | here |")


def test_every_option_of_trls_grpo_is_listed():
    """Every field of TRL 1.16's GRPOConfig that is no plain one of TrainingArguments, and every one of ours."""
    frozen = json.loads((ROOT / "tests" / "parity" / "trl_policy_1_16.json").read_text())
    plain = {field.name for field in fields(TrainingArguments)}
    fates = table(*GRPO_FATES)
    assert set(fates) == set(TRL_GRPO_FIELDS) >= set(frozen["config_fields"]) - plain
    own = set(table("coming-from-trl.md", "| field | default | what it does |", after="## GRPO"))
    dpo = {field.name for field in fields(DPOConfig)}
    assert {field.name for field in fields(GRPOConfig)} <= set(fates) | own | dpo | plain
    assert not own & set(fates)


@pytest.mark.parametrize("name", sorted(TRL_GRPO_FIELDS))
def test_options_of_grpo_do_what_the_table_says(tmp_path, name):
    """TRL's default is accepted; an option that is refused by name is so; an accepted one has TRL's default."""
    default, fate, sentence = table(*GRPO_FATES)[name]
    trls, ours = TRL_GRPO_FIELDS[name], GRPOConfig(output_dir=str(tmp_path))
    assert default == f"`{trls!r}`"
    GRPOConfig(output_dir=str(tmp_path), **{name: trls})
    if fate == "refused by name":
        assert name in {**UNBUILT_GRPO, **OF_ROWS}
        with pytest.raises(ValueError, match=name):
            GRPOConfig(output_dir=str(tmp_path), **{name: 17})
    elif fate == "alias":
        own = GRPO_ALIASES[name]
        assert f"`{own}`" in sentence
        value = {"importance_sampling_mode": "token_mask", "importance_sampling_clip_min": 0.5}.get(own, 7.0)
        switch = {} if own.endswith("correction") else {"importance_sampling_correction": True}
        assert vars(GRPOConfig(output_dir=str(tmp_path), **switch, **{name: value}))[own] == value
    elif fate == "accepted":
        assert vars(ours)[name] == trls
    else:
        assert fate == "differs"


PPO_FATES = {"after": "### Options of PPOConfig"}


def test_every_option_of_ppo_is_listed():
    """Every field of TRL 0.25's PPOConfig, and every one of ours that no other table has."""
    fates = set(table(*GRPO_FATES, **PPO_FATES))
    own = set(table("coming-from-trl.md", "| field | default | what it does |", **PPO_FATES))
    others = {field.name for config in (TrainingArguments, DPOConfig, GRPOConfig) for field in fields(config)}
    assert fates == set(TRL_PPO_FIELDS) >= set(UNBUILT_PPO)
    assert {field.name for field in fields(PPOConfig)} <= fates | own | others
    assert not own & fates


@pytest.mark.parametrize("name", sorted(TRL_PPO_FIELDS))
def test_options_of_ppo_do_what_the_table_says(tmp_path, name):
    """TRL's default is accepted; an option that is refused by name is so; one that is accepted has TRL's default."""
    default, fate, sentence = table(*GRPO_FATES, **PPO_FATES)[name]
    trls, ours = TRL_PPO_FIELDS[name], PPOConfig(output_dir=str(tmp_path))
    assert default == f"`{trls!r}`"
    given = PPOConfig(output_dir=str(tmp_path), **{name: trls})
    if fate == "refused by name":
        assert name in {**UNBUILT_PPO, **OF_ROWS}
        with pytest.raises(ValueError, match=name):
            PPOConfig(output_dir=str(tmp_path), **{name: 17})
    elif fate == "alias":
        assert f"`{PPO_ALIASES[name]}`" in sentence
        assert vars(ours)[PPO_ALIASES[name]] == vars(given)[PPO_ALIASES[name]] == trls
    elif fate == "accepted":
        assert vars(ours)[name] == trls
    else:
        assert fate == "differs"


ANSWER_FATES = [
    pytest.param(page, config, unbuilt, name, default, id=f"{page}:{name}")
    for page, config, unbuilt, trl in (
        ("sft.md", SFTConfig, UNBUILT_SFT, TRL_SFT_FIELDS),
        ("kto.md", KTOConfig, UNBUILT_KTO, TRL_KTO_FIELDS),
    )
    for name, default in trl.items()
]


@pytest.mark.parametrize(("page", "config", "unbuilt", "name", "default"), ANSWER_FATES)
def test_options_of_sft_and_kto_do_what_the_table_says(tmp_path, page, config, unbuilt, name, default):
    """TRL's default is accepted; an option that is refused by name is so; one that is accepted has TRL's default."""
    shown, fate, _ = table(page, "| field | default in TRL | fate | here |")[name]
    assert shown == f"`{default!r}`"
    config(output_dir=str(tmp_path), **{name: default})
    if fate == "refused by name":
        assert name in unbuilt
        with pytest.raises(ValueError, match=name):
            config(output_dir=str(tmp_path), **{name: 17})
    else:
        own = vars(config(output_dir=str(tmp_path)))[name]
        assert (own == default) == (fate == "accepted") or fate == "differs"


def test_every_option_of_sft_and_kto_is_listed():
    """Every field of ours that is no other page's is on their pages."""
    others = {field.name for base in (TrainingArguments, DPOConfig) for field in fields(base)}
    for page, config in (("sft.md", SFTConfig), ("kto.md", KTOConfig)):
        own = set(table(page, "| option | default | what it does |"))
        assert {field.name for field in fields(config)} <= own | others


def test_glossary_has_every_letter_unit_and_kind():
    """Letters of the shapes of parcels, units of losses, kinds of tables, and the words of the conventions."""
    text = read("glossary.md")
    letters = {letter for name in types.__all__ for letter in re.findall(r"\b[A-Z]\b", _shapes(vars(types)[name]))}
    assert {"P", "N", "M", "L", "T", "F", "H"} <= letters
    assert not [letter for letter in letters if f"| **{letter}** |" not in text]
    words = set(table("glossary.md", "| word | meaning |"))
    kinds = {rows.kind for rows in TABLES} | {divergences.kind, aggregations.kind}
    assert kinds - words <= {"advantage", "reward", "reward function"}  # in the plural there
    assert not [unit for unit in (*PAIR_UNITS, "row", "token", "supervised_token") if unit not in text]


def _shapes(parcel: Any) -> str:
    return " ".join(letters_of(part.type) for part in fields(parcel)) if is_dataclass(parcel) else ""


def test_every_metric_is_explained_and_read():
    assert list(table("metrics.md", "| metric | what it is |")) == list(EXPLANATIONS)
    assert set(table("metrics.md", "| metric | normal | a bad curve | what to do |")) == set(EXPLANATIONS)


def test_every_metric_has_all_that_its_row_promises():
    """What is normal, what is bad and what to do, and none of it by pointing at the line above."""
    for name, cells in table("metrics.md", "| metric | normal | a bad curve | what to do |").items():
        assert all(cells), f"{name} has an empty cell"
        assert not [cell for cell in cells if re.match(r"as (above|there)\b", cell)], name


def test_every_metric_of_trl_is_listed():
    keys = {
        key for cell in table("coming-from-trl.md", "| TRL's key | here |") for key in re.split(r"`?, `?|`? \(", cell)
    }
    assert keys >= {
        *(f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")),
        *(f"{kind}/{answer}" for kind in ("logps", "logits") for answer in ("chosen", "rejected")),
        "loss",
        "grad_norm",
        "learning_rate",
        "epoch",
        "entropy",
        "mean_token_accuracy",
        "num_tokens",
    }
    assert keys >= {"nll_loss", "aux_loss"}


def test_metrics_of_grpo_that_are_the_same_are_there():
    """A key of TRL whose sentence begins with "same" has a sentence of ours."""
    rows = table("coming-from-trl.md", "| TRL's key | here |", after="### Metrics of GRPO")
    same = {key for cell, (sentence,) in rows.items() for key in cell.split("`, `") if sentence.startswith("same")}
    assert len(same) > 20
    assert not [key for key in same if explain(key.replace("<function>", "f")) is None]


def test_metrics_of_ppo_that_are_the_same_are_there():
    """A key of TRL 0.25 whose sentence begins with "same" has a sentence of ours."""
    rows = table("coming-from-trl.md", "| TRL's key | here |", after="### Metrics of PPO")
    same = {key for cell, (sentence,) in rows.items() for key in cell.split("`, `") if sentence.startswith("same")}
    assert len(same) >= 12
    assert not [key for key in same if explain(key) is None]


def test_rewards_page_lists_the_table():
    own = {name for name in reward_functions if reward_functions[name].function.__module__.startswith("burnish.")}
    assert set(table("rewards.md", "| name | columns | settings | what it gives |")) == own


def test_checkpoints_page_names_every_option_that_may_change():
    text = read("checkpoints.md")
    assert not [name for name in (*FREE_OPTIONS, *FREE_PREFIXES) if f"`{name}`" not in text]


def test_forward_page_names_every_statistic():
    assert set(table("forward.md", "| `needs` | result | gradient |")) == {"always", *STATISTICS, "hidden"}


def test_data_page_names_the_counts_it_speaks_of():
    named = set(re.findall(r"`(num_[a-z_]+)`", read("data.md")))
    assert named
    assert named <= {*COUNTS, *EXPLANATIONS}
