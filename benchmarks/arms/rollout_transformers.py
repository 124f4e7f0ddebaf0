"""The peer's arm: `generate` of transformers as TRL 1.16 calls it.

Every prompt stands once for each of its answers, padded on the left, with temperature 1 and no filter, without
compilation; under bfloat16 each forward is in an autocast of its own, as accelerate wraps a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from measure import start_job
from rollout_measure import run
from transformers import AutoModelForCausalLM, GenerationConfig


def main() -> None:
    job = start_job()
    plain = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    plain.generation_config.eos_token_id = None  # answers have a fixed length
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if job["precision"] == "bfloat16" else "no")
    model = accelerator.prepare_model(plain, evaluation_mode=True).eval()

    @torch.no_grad()
    def rollout(prompts: Sequence[list[int]], answers: int, tokens: int) -> None:
        ids = torch.tensor(prompts).repeat_interleave(answers, 0)
        config = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            min_p=None,
            repetition_penalty=1.0,
            pad_token_id=job["pad_token_id"],
            eos_token_id=None,
            cache_implementation=None,
            disable_compile=True,
        )
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert found.shape == (len(ids), ids.shape[1] + tokens)

    run(job, rollout, library="transformers")


if __name__ == "__main__":
    main()
