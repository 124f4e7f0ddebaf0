from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import BloomConfig, GPT2Config, LlamaConfig, MambaConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from online_training import make_online_trainer, make_prompts

from burnish.trainers.positions import check_positions, num_positions


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=96), 96),
        (GPT2Config(n_positions=96), 96),
        (BloomConfig(), None),
        (MambaConfig(), None),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "to_dict") else "",
)
def test_positions_of_a_configuration(config, expected):
    assert num_positions(config) == expected


def test_what_fits_is_silent():
    check_positions(LlamaConfig(max_position_embeddings=96), {"train": 90, "eval": 3}, max_new_tokens=6)
    check_positions(LlamaConfig(max_position_embeddings=96), {}, max_new_tokens=600)
    check_positions(MambaConfig(), {"train": 10**6}, max_new_tokens=6)


@pytest.mark.parametrize(
    ("longest", "max_new_tokens", "fixes"),
    [
        ({"train": 91, "eval": 3}, 6, ["max_completion_length=5,", "max_prompt_length=90,"]),
        ({"train": 3, "eval": 120}, 6, ["max_prompt_length=90,"]),
        ({"train": 3}, 96, ["max_completion_length=93,"]),
    ],
    ids=["both", "prompt alone is too long", "answer alone is too long"],
)
def test_what_does_not_fit_says_what_would(longest, max_new_tokens, fixes):
    with pytest.raises(ValueError, match="the model was made for 96") as raised:
        check_positions(LlamaConfig(max_position_embeddings=96), longest, max_new_tokens=max_new_tokens)
    message = str(raised.value)
    assert [fix for fix in ("max_completion_length=", "max_prompt_length=") if fix in message] == [
        fix.partition("=")[0] + "=" for fix in fixes
    ]
    assert all(fix in message for fix in fixes)
    assert f"the longest prompt of {max(longest, key=longest.get)} has {max(longest.values())} tokens" in message


def test_a_run_that_does_not_fit_ends_before_it_begins(tmp_path):
    """A prompt of about 550 tokens and a model of 512 positions; cut as the message says, it runs."""
    rows = [*make_prompts(4), {"prompt": [{"role": "user", "content": "x" * 550}], "wanted": 1}]
    with pytest.raises(ValueError, match=r"the model was made for 512 [^$]*- max_prompt_length=504"):
        make_online_trainer(tmp_path / "1", rows=rows)
    with pytest.raises(ValueError, match="the longest prompt of eval has"):
        make_online_trainer(tmp_path / "2", eval_dataset=rows)
    trainer = make_online_trainer(tmp_path / "3", rows=rows, max_prompt_length=504, max_steps=1)
    assert trainer.data_reports["train"].num_prompts_cut == 1
