"""Makes trl_policy_1_16.json, the numbers of test_trl_policy.py. Runs where TRL is installed, not in the tests.

<python with trl==1.16.0> tests/parity/make_trl_policy.py tests/parity/trl_policy_1_16.json

The trainer is TRL's; what a model, an engine and reward functions would give it are the tensors of the setup.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

sys.path.insert(0, str(Path(__file__).parent))
from trl_policy_setup import (
    ADVANTAGES,
    COMMON,
    LENGTHS,
    MAX_COMPLETION_LENGTH,
    OPTIONS,
    REWARD_WEIGHTS,
    REWARDS,
    G,
    N,
    make_tensors,
)
from trl_setup import make_model, make_tokenizer

TENSORS = make_tensors()
PROMPTS = [{"prompt": f"{index // G}"} for index in range(N)]


class _Given:
    """The methods of a trainer that would run a model, an engine or a reward function."""

    logps: torch.Tensor = TENSORS["old"]

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        return self.logps, TENSORS["entropy"], None

    def _generate(self, prompts):
        ids = [[5] * (length - 1) + [2] for length in LENGTHS]
        kept = [[int(x) for x in row[:length]] for row, length in zip(TENSORS["mask"], LENGTHS, strict=True)]
        sampled = [row[:length].tolist() for row, length in zip(TENSORS["sampler"], LENGTHS, strict=True)]
        return [[4]] * N, ids, kept, ["x"] * N, sampled if self.use_vllm else None, {}, None, None

    def _calculate_rewards(self, *args):
        rows = [[float("nan") if value is None else value for value in row] for row in REWARDS]
        return torch.tensor(rows, dtype=torch.float64)


class Grpo(_Given, GRPOTrainer):
    """GRPOTrainer on given tensors."""


class Gmpo(_Given, GMPOTrainer):
    """GMPOTrainer on given tensors."""


def make_trainer(output_dir: str, *, gmpo: bool = False, **options):
    """TRL's trainer: one step that is one batch of one round."""
    make_config = GMPOConfig if gmpo else GRPOConfig
    config = make_config(
        output_dir=output_dir,
        per_device_train_batch_size=N,
        num_generations=G,
        steps_per_generation=1,
        gradient_accumulation_steps=1,
        max_completion_length=MAX_COMPLETION_LENGTH,
        reward_weights=REWARD_WEIGHTS,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        **{**COMMON, **options},
    )
    model = make_model(0.0)
    model.save_pretrained(f"{output_dir}/model")
    model.config._name_or_path = f"{output_dir}/model"  # where TRL loads its reference from, which is never asked
    trainer = (Gmpo if gmpo else Grpo)(
        model,
        reward_funcs=[lambda completions, **kwargs: [0.0] * len(completions)] * 2,
        args=config,
        train_dataset=Dataset.from_list(PROMPTS),
        processing_class=make_tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def loss(case: str, output_dir: str) -> dict:
    """The loss of a step, its gradient by each log-prob, and what is logged."""
    options = OPTIONS[case]
    trainer = make_trainer(output_dir, gmpo=case == "gmpo", **options)
    trainer.use_vllm = "vllm_importance_sampling_mode" in options
    inputs = {
        "prompt_ids": torch.full((N, 1), 4),
        "prompt_mask": torch.ones(N, 1, dtype=torch.long),
        "completion_ids": torch.full(TENSORS["mask"].shape, 5),
        "completion_mask": TENSORS["mask"].long(),
        "advantages": TENSORS["advantages"],
        "num_items_in_batch": TENSORS["mask"].sum(),
        "old_per_token_logps": TENSORS["old"],
        "ref_per_token_logps": TENSORS["ref"],
    }
    found = {}
    if trainer.use_vllm:
        weights = trainer._generate_and_score_completions(PROMPTS)["importance_sampling_ratio"]
        inputs |= {"importance_sampling_ratio": weights, "sampling_per_token_logps": TENSORS["sampler"]}
        found["weights"] = weights.tolist()
    trainer._metrics["train"].clear()
    trainer.logps = TENSORS["logps"].clone().requires_grad_()
    total = trainer._compute_loss(trainer.model, inputs)
    total.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return {"loss": float(total), "gradient": trainer.logps.grad.tolist(), "metrics": metrics, **found}


def advantages(case: str, output_dir: str) -> list[float]:
    """The advantage of each answer of a round."""
    trainer = make_trainer(output_dir, **ADVANTAGES[case])
    return trainer._generate_and_score_completions(PROMPTS)["advantages"].tolist()


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as scratch:
        frozen = {
            "versions": {name: version(name) for name in ("trl", "transformers", "torch")},
            "losses": {case: loss(case, scratch) for case in OPTIONS},
            "advantages": {case: advantages(case, scratch) for case in ADVANTAGES},
            "config_fields": sorted(field.name for field in fields(GRPOConfig)),
        }
    output.write_text(json.dumps(frozen, indent=1) + "\n")


if __name__ == "__main__":
    main()
