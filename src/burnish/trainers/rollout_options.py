"""Options of rollouts: how answers are drawn, how a round is cut into steps, how answers are scored and judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from burnish.data.truncate import TruncationPolicy
from burnish.generation.base import SamplingParams
from burnish.rollout.plan import RoundPlan, plan_round
from burnish.trainers.config import arg
from burnish.trainers.engine_options import EngineOptions
from burnish.trainers.reference_options import ReferenceOptions
from burnish.trainers.unread import refuse_unread


@dataclass
class RolloutOptions(EngineOptions):
    """How a round's answers are drawn, and how many.

    Raises:
        ValueError: numbers out of their range, or that do not divide.
    """

    fewest_generations: ClassVar[int] = 2  # a group of one has nothing to compare with

    num_generations: int = arg(8, "Answers to each prompt: the size of a group, 2 or more.")
    steps_per_generation: int | None = arg(
        None, "Micro-batches of a round, a multiple of gradient_accumulation_steps; unset: one optimizer step."
    )
    generation_batch_size: int | None = arg(None, "Answers of a round on all processes; instead of the former.")
    num_iterations: int = arg(1, "Passes over each round.")
    max_completion_length: int | None = arg(512, "Longest answer in tokens; longer ones are cut and counted.")
    temperature: float = arg(1.0, "The logits are divided by it, for sampling and for every log-prob; above 0.")
    top_p: float = arg(1.0, "Draw only from the likeliest tokens that together have this probability; 1: off.")
    top_k: int | None = arg(0, "Draw only from so many of the likeliest tokens; 0: off.")
    min_p: float | None = arg(None, "Draw only tokens with this share of the likeliest one's probability.")
    repetition_penalty: float = arg(1.0, "Lower the logits of tokens that are there already; 1: off.")
    stop_strings: list[str] | None = arg(None, "Texts that end an answer, beside the end-of-sequence tokens.")
    min_new_tokens: int = arg(0, "No answer ends before so many tokens.")
    shuffle_dataset: bool = arg(True, "Another order of the prompts in every epoch.")
    chat_template_kwargs: dict[str, Any] | None = arg(
        None, "Variables of the chat template, for rows that do not set them."
    )
    mask_truncated_completions: bool = arg(
        False, "Leave answers that were cut out of the loss; they stay in the baseline of their group."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_completion_length is None:
            raise ValueError("max_completion_length=None; an answer needs a limit: give a whole number from 1")
        refuse_unread(self)
        TruncationPolicy(max_prompt_length=self.max_prompt_length)
        self.sampling_params(end_token_ids=())
        self.round_plan()

    def round_plan(self) -> RoundPlan:
        """The arithmetic of a round."""
        return plan_round(
            num_generations=self.num_generations,
            fewest_generations=self.fewest_generations,
            per_device_train_batch_size=self.per_device_train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            steps_per_generation=self.steps_per_generation,
            generation_batch_size=self.generation_batch_size,
            num_iterations=self.num_iterations,
            processes=self.world_size,
        )

    def sampling_params(self, *, end_token_ids: tuple[int, ...]) -> SamplingParams:
        """The distribution that training answers are drawn from."""
        assert self.max_completion_length is not None
        return SamplingParams(
            max_new_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop_strings=tuple(self.stop_strings or ()),
            min_new_tokens=self.min_new_tokens,
            end_token_ids=end_token_ids,
        )


@dataclass
class RewardOptions(RolloutOptions):
    """How answers are scored, and which groups are worth training on.

    Raises:
        ValueError: numbers out of their range, or an option that would have no effect.
    """

    reward_weights: list[float] | None = arg(None, "Factor of each reward function in the total; 1 each if unset.")
    reward_options: dict[str, dict[str, Any]] | None = arg(
        None, "Settings of reward functions by their name, as {math: {answer: solution}}."
    )
    reward_isolation: str = arg(
        "auto", "Where reward functions run: process (killable workers), none (here), auto (as the function allows)."
    )
    reward_timeout: float | None = arg(60.0, "Seconds that a reward function may take for a round; unset: no limit.")
    reward_retries: int = arg(0, "How often a reward function that failed is called again.")
    on_reward_error: str = arg(
        "raise", "A reward function that fails: raise ends the run, unscored leaves the answers out and counts them."
    )
    solved_reward: float = arg(1.0, "An answer counts as right if its total reward is at least this.")
    dynamic_sampling: bool = arg(
        False, "Replace groups whose answers all have the same reward by groups of further prompts (DAPO)."
    )
    dynamic_sampling_attempts: int = arg(3, "How often further prompts are drawn for one round, for dynamic_sampling.")
    curriculum_window: list[float] | None = arg(
        None, "Lowest and highest solve rate of prompts that are visited in every epoch; others every fourth one."
    )
    log_completions: bool = arg(False, "Show a table of answers with their rewards at each log line.")
    num_completions_to_print: int | None = arg(None, "How many of them, 1 or more; unset: 4.")

    def __post_init__(self) -> None:
        super().__post_init__()
        window = self.curriculum_window
        if window is not None and (len(window) != 2 or not 0 <= window[0] <= window[1] <= 1):
            raise ValueError(f"curriculum_window={window!r}; allowed: two numbers, 0 <= lowest <= highest <= 1")


@dataclass
class OnlineConfig(RewardOptions, ReferenceOptions):
    """Options of trainers that draw their own answers: sampling, rewards, reference, evaluation on held-out prompts."""

    row_kind = "prompts"

    num_generations_eval: int | None = arg(
        None, "Answers to each held-out prompt, drawn at eval_temperature; unset: num_generations; 0: only greedy."
    )
    eval_temperature: float | None = arg(None, "Temperature of these answers; unset: temperature.")
    eval_greedy: bool = arg(True, "Also answer each held-out prompt once with the likeliest tokens.")
    importance_sampling_correction: bool = arg(
        False, "Correct for the engine's probabilities being others than the trainer's own."
    )
    importance_sampling_mode: str = arg(
        "sequence_mask", "token_truncate, token_mask, sequence_truncate, sequence_mask, or a callable."
    )
    importance_sampling_clip_max: float | None = arg(3.0, "Largest weight of that correction; unset: no bound.")
    importance_sampling_clip_min: float | None = arg(None, "Least weight of that correction; unset: no bound.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws_in_other_precision() and not self.importance_sampling_correction:
            raise ValueError(
                f"generation_dtype={self.generation_dtype!r} draws answers in another precision than that of training, "
                "so from another distribution: set importance_sampling_correction=True, which corrects for it"
            )
        if not self.eval_greedy and self.num_generations_eval == 0:
            raise ValueError("eval_greedy=False and num_generations_eval=0 leave nothing to evaluate: set one of them")
        if self.eval_temperature is not None and not self.eval_temperature > 0:
            raise ValueError(
                f"eval_temperature={self.eval_temperature!r}; allowed: above 0. Greedy answers are eval_greedy=True"
            )
