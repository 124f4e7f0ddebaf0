"""The rules of PPO: its rounds, where its critic comes from, and options of which one makes the other pointless."""

from __future__ import annotations

from burnish.cli.rollout_rules import ROUND_KEYS, round_of
from burnish.cli.rulebook import Values, rule
from burnish.cli.sources import is_classifier_name

ONE_OF_THEM = "set one of them"
# An option, another one, and why they exclude each other.
CONTRADICTIONS = (
    ("missing_eos_penalty", "bootstrap_truncated", "takes a cut answer for one that ended"),
    ("missing_eos_penalty", "mask_truncated_completions", "is about answers that are left out"),
    ("bootstrap_truncated", "mask_truncated_completions", "is about answers that are left out"),
)  # fmt: skip


@rule("num_mini_batches", "steps_per_generation", "generation_batch_size", "gradient_accumulation_steps")
def _mini_batches_make_the_round(values: Values) -> str | None:
    micro_batches = values["num_mini_batches"] * values["gradient_accumulation_steps"]
    if values["num_mini_batches"] == 1:
        return None
    if values["generation_batch_size"] is not None or values["steps_per_generation"] not in (None, micro_batches):
        return (
            f"makes a round of {micro_batches} micro-batches, and steps_per_generation or generation_batch_size says "
            f"something else: {ONE_OF_THEM}"
        )
    return None


@rule("total_episodes", "max_steps", "num_mini_batches", *ROUND_KEYS)
def _episodes_make_the_steps(values: Values) -> str | None:
    episodes, given = values["total_episodes"], values["max_steps"]
    try:
        plan = round_of(values)
    except ValueError:  # told by another rule
        return None
    steps = plan.steps_of(episodes) if episodes is not None else given
    return None if given in (-1, steps) else f"makes {steps} steps, and max_steps is {given}: {ONE_OF_THEM}"


@rule("critic", "value_model_path", "rewards")
def _there_is_one_critic(values: Values) -> str | None:
    critic, rewards = values["critic"], values["rewards"]
    if values["value_model_path"] is not None and critic != "policy":
        return f'is "{critic}", and value_model_path names another critic: {ONE_OF_THEM}'
    models = [name for name in rewards if is_classifier_name(name)]
    if critic == "reward" and len(models) != 1:
        return f'is "reward", a copy of the reward model, and rewards has {len(models)} of them: name one'
    return None


@rule("ptx_coef", "ptx_path")
def _supervised_rows_and_their_factor(values: Values) -> str | None:
    if (values["ptx_coef"] > 0) is (values["ptx_path"] is not None):
        return None
    return f"is {values['ptx_coef']}, and ptx_path is {values['ptx_path'] or 'null'}: set both, or neither"


@rule("stop_token")
def _the_end_token_is_eos(values: Values) -> str | None:
    return None if values["stop_token"] in (None, "eos") else f"is {values['stop_token']!r}; allowed: eos, or null"


def _contradiction(first: str, second: str, reason: str) -> None:
    @rule(first, second)
    def check(values: Values) -> str | None:
        both = values[first] not in (None, False) and values[second]
        return f"{reason}, and {second} is set: {ONE_OF_THEM}" if both else None


for _pair in CONTRADICTIONS:
    _contradiction(*_pair)
