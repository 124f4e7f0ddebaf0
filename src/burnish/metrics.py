"""Metrics: sums on the device until they are read, and the sentence that explains each name.

Every metric is a `Mean` (total, weight, squares). Means are added over micro-batches, steps and ranks and
divided once, so that no average of averages exists and each metric knows its own standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from burnish.types import Mean

if TYPE_CHECKING:
    from torch import Tensor

EXPLANATIONS: dict[str, str] = {
    "loss": "What is minimised: each term divided by its count in the step; the mean over the logged steps.",
    "grad_norm": "Length of the whole gradient before clipping. Spikes mean a hard or broken batch.",
    "learning_rate": "Step size of the optimizer at the last logged step.",
    "epoch": "Passes over the training rows so far.",
    "rewards/chosen": "beta times the log-ratio of policy to reference on chosen answers; 0 before training.",
    "rewards/rejected": "beta times the log-ratio of policy to reference on rejected answers; should fall.",
    "rewards/margins": "rewards/chosen minus rewards/rejected: how clearly the policy tells the two apart.",
    "rewards/accuracies": "Share of pairs whose chosen answer has the higher reward; a tie counts one half.",
    "rewards/accuracies_chosen_shorter": "The same share among pairs whose chosen answer has fewer tokens: "
    "low beside a high rewards/accuracies means that the policy learns length.",
    "rewards/accuracies/": "rewards/accuracies of the pairs of one source.",
    "rewards/margins/": "rewards/margins of the pairs of one source.",
    "rewards/margin_from_rejected": "Share of the margin that comes from pushing rejected answers down: "
    "-rewards/rejected / rewards/margins. Above 1: chosen answers become less likely too.",
    "length_difference": "Trained tokens of chosen minus those of rejected answers, mean over pairs.",
    "length_margin_correlation": "Correlation of that difference with the margin over pairs; near 1: length is learnt.",
    "kl": "Drift from the reference: mean of exp(d) - 1 - d over the data's tokens, d = reference - policy in nats; an "
    "index unless the policy wrote them. Of KTO: the reference point z of a step, in nats.",
    "kl/sequential": "KL(reference || policy) of the next-token distributions in nats, mean over the data's tokens.",
    "win_rate": "Share of held-out prompts where the judge prefers the policy's answer; a tie counts one half. "
    "`events.jsonl` says against whose answers.",
    "win_rate/low": "Lower end of Wilson's 95 % interval of win_rate.",
    "win_rate/high": "Upper end of Wilson's 95 % interval of win_rate.",
    "completions/mean_length": "Tokens of the policy's own answers, the end token included.",
    "completions/clipped_ratio": "Share of the policy's own answers that did not end within the limit.",
    "truncated": "Share of answers that were cut, or whose prompt was.",
    "reward": "Mean total reward of the answers of a round: the number that should rise.",
    "reward_std": "Spread of the total rewards over all answers of a round.",
    "rewards/*/mean": "Mean of what one reward function returned, before its weight, over the answers that it scored.",
    "rewards/*/std": "Spread of what one reward function returned.",
    "frac_reward_zero_std": "Share of groups whose answers all have the same reward: they teach nothing. Near 1: the "
    "prompts are too easy or too hard.",
    "frac_rows_with_gradient": "Share of answers that move the policy: advantage not 0, and a token is trained.",
    "frac_unscored": "Share of answers that no reward function scored; they are in no baseline and no gradient.",
    "solve_rate": "Share of answers whose total reward is at least solved_reward.",
    "solve_rate/": "Share of groups in which that share of the answers, in percent, is right.",
    "pass@": "Chance that k answers to a prompt hold a right one.",
    "maj@": "Share of prompts for which the final answer that most samples give is right.",
    "accuracy": "Of a policy: share of sampled answers that are right, total reward at least solved_reward. Of a "
    "reward model: share of pairs whose chosen answer scores higher; a tie counts half.",
    "accuracy/": "accuracy of the pairs of one source.",
    "accuracy_chosen_shorter": "accuracy among pairs whose chosen answer has fewer tokens: low beside a high accuracy "
    "means that the model scores length.",
    "margin": "Score of the chosen minus that of the rejected answer: the log-odds of the preference.",
    "margin/": "margin of the pairs of one source.",
    "min_reward": "Smallest score of a micro-batch, or of a part of one under the token budget, mean over these.",
    "mean_reward": "Mean score of all answers. Only differences matter; far from 0, set center_rewards_coefficient.",
    "max_reward": "Largest score of a micro-batch, or of a part of one under the token budget, mean over these.",
    "score_length_correlation": "Correlation of an answer's score with its tokens; near 1: length is what is scored.",
    "calibration_error": "How far the model is from being right as often as it is sure: the distance of share and "
    "confidence of the reliability bins, mean over pairs.",
    "reliability/": "Accuracy among the pairs that the model is sure of to that percentage, σ(|margin|). Calibrated: "
    "they are the same.",
    "accuracy_greedy": "Share of held-out prompts whose likeliest answer is right.",
    "reward_greedy": "Mean total reward of the likeliest answers to held-out prompts.",
    "completions/min_length": "Tokens of the shortest answer of a round.",
    "completions/max_length": "Tokens of the longest answer of a round.",
    "completions/mean_terminated_length": "Mean tokens of the answers that ended by themselves.",
    "completions/min_terminated_length": "Tokens of the shortest answer that ended by itself.",
    "completions/max_terminated_length": "Tokens of the longest answer that ended by itself.",
    "completions/duplicate_ratio": "Share of answers that another one of their group equals; high: sampling is "
    "nearly greedy, or the policy collapsed.",
    "dynamic_sampling/replaced_groups": "Groups without signal that further prompts took the place of.",
    "dynamic_sampling/surplus_groups": "Groups with signal beyond the round's size, of which nothing came.",
    "time/": "Seconds of a phase of a round.",
    "tokens_per_second/": "Tokens of a phase of a round a second, on one process.",
    "entropy_coef": "Factor of the entropy bonus, moved by use_adaptive_entropy.",
    "curriculum/left_out": "Prompts passed over so far because they are solved nearly always, or nearly never.",
    "logps/chosen": "Summed log-prob of chosen answers in nats. It may fall while the margin grows.",
    "logps/rejected": "Summed log-prob of rejected answers in nats.",
    "logits/chosen": "Mean raw logit over vocabulary and chosen tokens. Of no statistical meaning; drift is a hint.",
    "logits/rejected": "Mean raw logit over vocabulary and rejected tokens. See logits/chosen.",
    "entropy": "Mean entropy in nats of the next-token distribution over trained tokens. Near 0: the policy collapsed.",
    "mean_token_accuracy": "Share of chosen tokens, of SFT of all trained ones, that are the policy's most "
    "likely token.",
    "num_tokens": "Prompt and completion tokens seen since the start of the run, all ranks, a prompt once a row.",
    "num_skipped_steps": "Steps whose loss or gradient was not finite and that never reached the optimizer.",
    "num_stream_rows": "Rows read from a stream so far, all ranks, bad ones included.",
    "num_dropped_rows": "Bad rows of a stream that were left out so far, all ranks; each is an event of the run.",
    "step_time": "Seconds per optimizer step since the last log line, everything included.",
    "train_loss": "The loss, averaged over all steps since training was started or resumed.",
    "runtime": "Seconds that the whole training or evaluation took.",
    "samples_per_second": "Rows of the data set per second of runtime.",
    "steps_per_second": "Optimizer steps, or batches of an evaluation, per second of runtime.",
    "total_flos": "Floating-point operations so far: six per parameter and token, padding included.",
    "clip_ratio/low_mean": "Share of trained tokens (answers, for ratios of sequences) without gradient: bad, and "
    "already less likely than the clip allows. 0 while rounds are fresh.",
    "clip_ratio/high_mean": "The same for good tokens that are already more likely than the clip allows.",
    "clip_ratio/region_mean": "Share of trained tokens, or answers, that the clip leaves without gradient, either way.",
    "cispo_clip_ratio": "Share of trained tokens whose weight is capped; they keep their gradient.",
    "vespo/phi_seq_mean": "Mean weight of an answer's gradient; 1 on policy, towards 0 far from the old policy.",
    "val/clipfrac_avg": "Share of trained tokens where the critic has moved further than the clip allows.",
    "objective/scores": "Mean score of the answers as it goes into their rewards: scaled, clipped, less what a missing "
    "end costs.",
    "objective/kl": "Mean KL to the reference of an answer in nats: the sum of the log-ratios of its tokens.",
    "objective/non_score_reward": "What the KL takes off the rewards of an answer, mean over answers.",
    "objective/rlhf_reward": "Mean of all that an answer earned: scores, rewards of tokens, less the KL.",
    "objective/entropy": "Mean surprise of an answer in nats: minus the summed log-prob of its tokens.",
    "kl_position/": "Mean log-ratio to the reference of the tokens in that part of their answers, in percent.",
    "kl_coef": "What a nat of KL costs, moved by kl_target.",
    "policy/approxkl_avg": "Distance of the policy from the one that drew the round: half the mean squared log-ratio "
    "of a token.",
    "policy/clipfrac_avg": "clip_ratio/region_mean under TRL's name.",
    "policy/entropy_avg": "entropy under TRL's name.",
    "policy/grad_norm": "Length of the policy's gradient before clipping.",
    "val/grad_norm": "Length of the critic's gradient before clipping; of a head on the policy's trunk, the head's "
    "alone.",
    "val/explained_variance": "Share of the variance of the returns that the critic knew: 1 is all of it, 0 as good as "
    "a constant.",
    "val/ratio": "Mean ratio of policy to old policy.",
    "val/ratio_var": "Variance of that ratio over tokens.",
    "val/num_eos_tokens": "Answers of a round that ended by themselves.",
    "val/lr": "Step size of the critic's parameters at the last logged step.",
    "ratio/": "Share of trained tokens whose ratio of policy to old policy lies there.",
    "values/mean": "Mean of what the critic expects before each token.",
    "values/std": "Spread of that.",
    "returns/mean": "Mean of what the critic learns: what a token's answer still earned.",
    "returns/std": "Spread of that.",
    "advantages/mean": "Mean advantage before whitening: near 0 once the critic is right.",
    "advantages/std": "Spread of the advantages before whitening.",
    "episode": "Answers so far, all ranks.",
    "eps": "Answers a second since the last log line.",
    "lr": "learning_rate under TRL's name.",
    "num_early_stops": "Rounds that were given up because the policy had moved too far, so far.",
    "sampling/sampling_logp_difference/mean": "Mean distance in nats between the engine's log-prob of a token and the "
    "trainer's.",
    "sampling/sampling_logp_difference/row_max": "The largest such distance in an answer, mean over answers.",
    "sampling/importance_sampling_ratio/mean": "Mean weight that corrects for the engine, after its bounds.",
    "sampling/dropped": "Share of trained tokens, or answers, that the correction leaves without weight.",
    "sampling/truncated": "Share of trained tokens, or answers, whose weight is set to a bound.",
    "sampling/unscored": "Share of trained tokens that the engine gave no log-prob for; they are not corrected.",
    "sampling/effective_sample_size": "What the weighted tokens, or answers, are worth, as a share of their number: "
    "(sum of w)² / (n sum of w²).",
    "loss/entropy": "Minus the mean entropy in nats, before its coefficient: the bonus as a loss.",
    "loss/aux_loss": "Load-balancing loss of a mixture of experts, before its coefficient.",
    "reward_seconds/": "Seconds that a reward function took for the answers of a round.",
    "reward_unscored/": "Share of answers that a reward function did not score: it returned None.",
    "reward_errors/": "Share of answers on which a reward function failed or took too long.",
    "reward_retries/": "Calls of a reward function that were made again, per round.",
    "reward_truncated/": "Share of answers that are longer, with their prompt, than a reward model can read.",
    "loss/": "One term of a loss with several, before its weight: the mean over that term's own unit.",
}

# Of answers to held-out prompts alone: logged as eval_accuracy and the like, so that a reward may log them in training.
HELD_OUT = frozenset({"accuracy", "accuracy_greedy", "reward_greedy", "win_rate", "win_rate/low", "win_rate/high"})


def explain(name: str) -> str | None:
    """The sentence that explains a metric, whatever its `eval_` or `train_` prefix, or None if it is unknown.

    >>> explain("eval_rewards/margins").startswith("rewards/chosen minus")
    True
    """
    parts = name.split("_") if name.startswith(("eval_", "train_")) else [name]
    for start in range(len(parts)):
        candidate = "_".join(parts[start:])
        for known in (candidate, *_families(candidate)):
            if known in EXPLANATIONS:
                return EXPLANATIONS[known]
    return None


def _families(name: str) -> tuple[str, ...]:
    """What names that differ in one part are listed as: `loss/` of loss/sft, `rewards/*/mean`, `pass@`."""
    parts = name.split("/")
    middle = [f"{parts[0]}/*/{parts[-1]}"] if len(parts) > 2 else []
    return (name[: name.rfind("/") + 1], *middle, name[: name.rfind("@") + 1])


@dataclass(frozen=True)
class Estimate:
    """A mean read off the device.

    Attributes:
        mean: total / weight.
        weight: the summed weight.
        standard_error: of the mean.
        mean_square: the mean of the squares.
    """

    mean: float
    weight: float
    standard_error: float
    mean_square: float = math.nan

    @classmethod
    def of(cls, total: float, weight: float, squares: float) -> Estimate:
        """From the three sums of a `Mean`. A weight of 0 gives NaN: nothing was measured."""
        if weight == 0:
            return cls(math.nan, 0.0, math.nan)
        mean = total / weight
        variance = max(squares / weight - mean * mean, 0.0)
        standard_error = math.sqrt(variance / (weight - 1)) if weight > 1 else math.nan
        return cls(mean, weight, standard_error, squares / weight)


# Pairs by how sure a reward model is of them, σ(|s_w - s_l|) in percent; calibration error is over these.
RELIABILITY_BINS = ("50-60", "60-70", "70-80", "80-90", "90-100")
CALIBRATIONS = {"calibration_error": ("reliability/", "_confidence/")}
VARIANCES = {"val/ratio_var": "val/ratio"}
EXPLAINED = {"val/explained_variance": ("_returns", "_return_errors")}
# A difference of two means, where nothing measured it answer by answer.
DIFFERENCES = {"rewards/margins": ("rewards/chosen", "rewards/rejected")}
WEIGHTS = {"sampling/effective_sample_size": "sampling/importance_sampling_ratio/mean"}
CORRELATIONS = {
    "length_margin_correlation": ("length_difference", "rewards/margins", "_length_difference_x_margins"),
    "score_length_correlation": ("_length", "mean_reward", "_length_x_reward"),
}


def shown(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The means that something was measured of, and what is made of several.

    Means that only serve that (their names begin with `_`), a mean of weight 0, and a correlation of what does not vary
    are left out: they say nothing.
    """
    known = {name: mean for name, mean in estimates.items() if mean.weight > 0 and not name.startswith("_")}
    for name, parts in CORRELATIONS.items():
        if all(part in estimates for part in parts):
            first, second, product = (estimates[part] for part in parts)
            correlation = _correlation(first, second, product)
            if not math.isnan(correlation):
                known[name] = Estimate(correlation, product.weight, math.nan)
    for name, (shares, confidences) in CALIBRATIONS.items():
        bins = [
            (estimates[n], estimates[f"{confidences}{n.removeprefix(shares)}"]) for n in known if n.startswith(shares)
        ]
        if bins:
            weight = sum(share.weight for share, _ in bins)
            gaps = sum(share.weight * abs(share.mean - confidence.mean) for share, confidence in bins)
            known[name] = Estimate(gaps / weight, weight, math.nan)
    known |= _differences(known)
    for name, mean in VARIANCES.items():
        if mean in known:
            known[name] = Estimate(_variance(known[mean]), known[mean].weight, math.nan)
    for name, (whole, rest) in EXPLAINED.items():
        if whole in estimates and _variance(estimates[whole]) > 0:
            share = 1 - _variance(estimates[rest]) / _variance(estimates[whole])
            known[name] = Estimate(share, estimates[whole].weight, math.nan)
    for name, weights in WEIGHTS.items():
        if weights in known:
            known[name] = Estimate(_effective_share(known[weights]), known[weights].weight, math.nan)
    return known


def _differences(known: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """`DIFFERENCES` of independent means; the weight is that of the smaller one."""
    found: dict[str, Estimate] = {}
    for name, parts in DIFFERENCES.items():
        if name not in known and all(part in known for part in parts):
            first, second = (known[part] for part in parts)
            error = math.hypot(first.standard_error, second.standard_error)
            found[name] = Estimate(first.mean - second.mean, min(first.weight, second.weight), error)
    return found


def _variance(estimate: Estimate) -> float:
    return max(estimate.mean_square - estimate.mean**2, 0.0)


def _effective_share(weights: Estimate) -> float:
    """(sum of w)² / (n sum of w²); 0 if all are 0."""
    return weights.mean**2 / weights.mean_square if weights.mean_square > 0 else 0.0


def _correlation(first: Estimate, second: Estimate, product: Estimate) -> float:
    """Pearson's, from the means of x, y and x y; NaN where one of them does not vary."""
    spread = (first.mean_square - first.mean**2) * (second.mean_square - second.mean**2)
    if not spread > 1e-12 * first.mean_square * second.mean_square:
        return math.nan
    return (product.mean - first.mean * second.mean) / math.sqrt(spread)


class MetricBuffer:
    """Adds up means until somebody reads them; reading costs one reduction and one host sync."""

    def __init__(self) -> None:
        self._means: dict[str, Mean] = {}

    def add(self, metrics: Mapping[str, Mean]) -> None:
        """Add each mean to the one of its name."""
        for name, mean in metrics.items():
            self._means[name] = self._means[name] + mean if name in self._means else mean

    def flush(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Estimate]:
        """Read and forget everything. `reduce` sums a (K, 3) tensor over all ranks."""
        sums = self.state()
        self._means.clear()
        if not sums:
            return {}
        table: list[list[float]] = reduce(torch.stack(list(sums.values()))).tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return shown({name: Estimate.of(*row) for name, row in zip(sums, table, strict=True)})

    def __contains__(self, name: str) -> bool:
        return name in self._means

    def state(self) -> dict[str, Tensor]:
        """This rank's sums by name, sorted: (3,) total, weight, squares. For the checkpoint."""
        means = sorted(self._means.items())
        return {name: torch.stack([mean.total, mean.weight, mean.squares]) for name, mean in means}

    def load_state(self, state: Mapping[str, Tensor], device: torch.device | str) -> None:
        """Continue from the sums that `state()` returned."""
        self._means = {}
        for name, sums in state.items():
            total, weight, squares = sums.to(device).unbind()
            self._means[name] = Mean(total=total, weight=weight, squares=squares)
