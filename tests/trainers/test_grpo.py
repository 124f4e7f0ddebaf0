"""GRPO: its numbers by hand, and what each option and method does to a run."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from online_training import ending_model, make_online_trainer, make_prompts, near_wanted, repeatable, step_lines
from training import relative_distance, step_gradients

from burnish.trainers.grpo import GRPOConfig, GRPOTrainer
from burnish.types import PolicyTokens, TokenLoss

FAST = {("dapo", 0.2), ("dr_grpo", 0.0), ("gspo", 0.2)}

# Values.


class Recorder:
    """The parcels of each optimizer step, and the weights before it."""

    def __init__(self, trainer: GRPOTrainer):
        self.steps, self.weights = [], []
        own = trainer.take_parcels

        def take(*arguments):
            parcels = own(*arguments)
            self.steps.append(parcels)
            self.weights.append(copy.deepcopy(trainer.model.state_dict()))
            return parcels

        trainer.take_parcels = take


def token_logps(model, batch, row: int, temperature: float = 1.0) -> torch.Tensor:
    """Log-probs of one answer's tokens from the model's own logits: no padding, one row at a time."""
    prompt_index = int(batch.prompt_index[row])
    prompt = batch.prompt_ids[prompt_index][batch.prompt_mask[prompt_index]]
    answer = batch.completion_ids[row][batch.completion_mask[row]]
    logits = model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, answer[:, None]).squeeze(1)


def answers_of(batch) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)]


def advantages_by_hand(batch) -> torch.Tensor:
    """(16,) (R - mean) / (std + 1e-4) over the four answers of each group, from the answers themselves."""
    wanted = [make_prompts()[row]["wanted"] for row in batch.row_id.tolist()]
    rewards = torch.tensor(near_wanted(answers_of(batch), wanted), dtype=torch.float64).view(-1, 4)
    return ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()


def clipped(ratio: torch.Tensor, advantage: float, low: float = 0.8, high: float = 1.2) -> torch.Tensor:
    return -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)


def loss_by_hand(model, old, reference, batch, *, loss_type: str, beta: float, temperature: float) -> torch.Tensor:
    """One optimizer step's loss, row by row, from the formulas of the papers."""
    losses, num_tokens, num_rows = [], int(batch.completion_mask.sum()), len(batch)
    for row, advantage in enumerate(batch.advantages.flatten().tolist()):
        logps = token_logps(model, batch, row, temperature)
        with torch.no_grad():
            old_logps = token_logps(old, batch, row, temperature)
            ref_logps = token_logps(reference, batch, row, temperature)
        ratio = (logps - old_logps).exp()
        kl = ratio * ((ref_logps - logps).exp() - 1 - (ref_logps - logps))
        if loss_type == "gspo":
            tokens = clipped((logps - old_logps).mean().exp(), advantage).expand(len(logps))
        elif loss_type == "cispo":
            tokens = -ratio.detach().clamp(max=5.0) * advantage * logps
        else:
            tokens = clipped(ratio, advantage)
        tokens = tokens + beta * kl
        scale = {"dr_grpo": 1 / 8 / num_rows, "grpo": 1 / len(logps) / num_rows, "gspo": 1 / len(logps) / num_rows}
        losses.append(tokens.sum() * scale.get(loss_type, 1 / num_tokens))
    return torch.stack(losses).sum()


@pytest.mark.parametrize(
    ("loss_type", "beta"),
    [
        (name, beta) if (name, beta) in FAST else pytest.param(name, beta, marks=pytest.mark.slow)
        for name in ("dapo", "grpo", "dr_grpo", "gspo", "cispo")
        for beta in (0.0, 0.2)
    ],
)
def test_loss_and_gradient_by_hand(tmp_path, loss_type, beta):
    """Two rounds of two steps in float64: the second step of each has ratios off 1, and some are clipped."""
    options = {"steps_per_generation": 2, "max_steps": 4, "temperature": 0.8, "learning_rate": 3e-3}
    ref_seed = 1 if beta else None
    trainer = make_online_trainer(tmp_path, loss_type=loss_type, beta=beta, ref_seed=ref_seed, **options)
    recorder = Recorder(trainer)
    gradients = step_gradients(trainer)
    lines = step_lines(trainer)
    assert len(recorder.steps) == len(gradients) == len(lines) == 4
    reference = ending_model(1)
    for step, ((batch,), weights) in enumerate(zip(recorder.steps, recorder.weights, strict=True)):
        model, old = ending_model(), ending_model()
        model.load_state_dict(weights)
        old.load_state_dict(recorder.weights[step - step % 2])
        torch.testing.assert_close(batch.advantages.flatten().double(), advantages_by_hand(batch), rtol=1e-4, atol=1e-5)
        loss = loss_by_hand(model, old, reference, batch, loss_type=loss_type, beta=beta, temperature=0.8)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert lines[step]["loss"] == pytest.approx(loss.item(), rel=1e-7, abs=1e-9)  # Llama's norms are float32
        assert relative_distance(gradients[step], gradient) < 1e-6
    if loss_type in ("dapo", "grpo", "dr_grpo"):
        assert lines[0]["clip_ratio/region_mean"] == lines[2]["clip_ratio/region_mean"] == 0
        assert max(lines[1]["clip_ratio/region_mean"], lines[3]["clip_ratio/region_mean"]) > 0.02


# The first step.


class Ratios(GRPOTrainer):
    """Keeps log ratios of policy to old policy of the trained tokens."""

    def _get_per_token_logps_and_entropies(self, model, batch):
        stats = super()._get_per_token_logps_and_entropies(model, batch)
        if model.training and batch.old_logps is not None:
            ratios = (stats.logps - batch.old_logps)[batch.loss_mask].detach()
            self.ratios.setdefault(self.state.global_step, []).append(ratios)
        return stats


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.gallery)], ids=["float32", "float64"]
)
@pytest.mark.parametrize(
    "cut", [(16, 1, None, 1), (8, 2, None, 1), (2, 8, 150, 3), (2, 8, 0, 8), (16, 1, 40, 4)], ids=str
)
def test_the_first_ratio_is_exactly_one(tmp_path, dtype, cut):
    """Old log-probs are scored in the very parts that are trained on: not one bit differs in the first step."""
    rows, accumulation, budget, num_parts = cut
    trainer = make_online_trainer(
        tmp_path,
        dtype=dtype,
        trainer_class=Ratios,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=2 * accumulation,
        token_budget=budget,
        max_steps=2,
    )
    trainer.ratios = {}
    trainer.kept_forward.keeps = False  # else nothing is computed again
    trainer.train()
    assert [len(of_step) for of_step in trainer.ratios.values()] == [num_parts, num_parts]
    first, second = torch.cat(trainer.ratios[0]), torch.cat(trainer.ratios[1])
    assert not first.any()
    assert second.abs().max() > 1e-3


def test_kl_is_zero_on_the_first_step_and_no_longer(tmp_path):
    trainer = make_online_trainer(tmp_path, dtype=torch.float32, beta=0.1, max_steps=2)
    trainer.train()
    first, second = step_lines(trainer)
    assert first["kl"] == 0
    assert second["kl"] > 1e-4


def test_the_reference_is_the_one_that_is_given(tmp_path):
    trainer = make_online_trainer(tmp_path, beta=0.1, ref_seed=1, max_steps=1)
    trainer.train()
    assert step_lines(trainer)[0]["kl"] > 0.1


def test_without_beta_no_reference_is_loaded(tmp_path):
    trainer = make_online_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert "kl" not in step_lines(trainer)[0]
    assert not any(isinstance(item, torch.nn.Module) for item in vars(trainer.reference).values())


def test_the_first_step_is_checked_by_a_second_computation(tmp_path):
    from burnish.runtime.rundir import read_events

    make_online_trainer(tmp_path / "run", max_steps=1, temperature=0.7).train()
    (event,) = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "first_step"]
    assert event["ok"]
    assert event["max_difference"] < 1e-9
    assert event["sampler_gap"] < 1e-6  # the sampler's log-probs are kept in float32


# Options.


def test_num_iterations_trains_on_a_round_again(tmp_path):
    """Two passes over rounds of two steps: steps 3 and 4 have the parcels of 1 and 2, and no new answers are drawn."""
    trainer = make_online_trainer(tmp_path, steps_per_generation=2, num_iterations=2, max_steps=6)
    recorder = Recorder(trainer)
    trainer.train()
    ids = [[int(i) for parcel in step for i in parcel.row_id] for step in recorder.steps]
    assert ids[2:4] == ids[:2]
    for first, again in zip(recorder.steps[:2], recorder.steps[2:4], strict=True):
        for mine, theirs in zip(first, again, strict=True):
            assert torch.equal(mine.completion_ids, theirs.completion_ids)
            assert torch.equal(mine.old_logps, theirs.old_logps)
    assert trainer.queue.round_index == 2
    lines = step_lines(trainer)
    assert [("reward" in line) for line in lines] == [True, False, False, False, True, False]


def test_cut_answers_are_left_out_of_the_loss_and_not_of_the_baseline(tmp_path):
    plain = make_online_trainer(tmp_path / "1", max_steps=1)
    masked = make_online_trainer(tmp_path / "2", max_steps=1, mask_truncated_completions=True)
    batches = []
    for trainer in (plain, masked):
        recorder = Recorder(trainer)
        gradients = step_gradients(trainer)
        batches.append((recorder.steps[0][0], gradients[0]))
    (whole, own), (left, other) = batches
    truncated = whole.columns["truncated"].bool()
    assert 0 < truncated.sum() < len(truncated)
    assert torch.equal(whole.completion_ids, left.completion_ids)
    assert torch.equal(whole.advantages, left.advantages)
    assert not left.loss_mask[truncated].any()
    assert torch.equal(left.loss_mask[~truncated], whole.loss_mask[~truncated])
    assert relative_distance(other, own) > 1e-2
    line = step_lines(masked)[0]
    assert line["frac_rows_with_gradient"] == pytest.approx(1 - float(truncated.double().mean()))


def two_steps(output_dir, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """The answers of a round of two steps, and the gradient of the second."""
    trainer = make_online_trainer(output_dir, steps_per_generation=2, max_steps=2, **options)
    recorder = Recorder(trainer)
    gradients = step_gradients(trainer)
    return recorder.steps[0][0].completion_ids, gradients[1]


@pytest.fixture(scope="module")
def answers_and_second_gradient(tmp_path_factory):
    """Of the run that each option is compared with."""
    return two_steps(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    ("changed", "same_answers"),
    [
        ({"advantage": "rloo"}, True),
        ({"scale_rewards": "none"}, True),
        ({"loss_type": "gspo", "epsilon": 3e-4}, True),
        ({"beta": 0.1, "use_kl_in_reward": True, "ref_seed": 1}, True),
        ({"importance_sampling_level": "sequence"}, True),
        ({"top_entropy_quantile": 0.3}, True),
        ({"entropy_coef": 0.1}, True),
        ({"temperature": 0.5}, False),
        ({"top_p": 0.5}, False),
        ({"seed": 6}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_change_the_run(tmp_path, answers_and_second_gradient, changed, same_answers):
    first, plain = answers_and_second_gradient
    second, other = two_steps(tmp_path, **changed)
    assert (first.shape == second.shape and torch.equal(first, second)) is same_answers
    assert relative_distance(other, plain) > 1e-3


def test_a_kl_in_the_reward_is_no_part_of_what_was_solved(tmp_path):
    """Every answer is right, and advantages are of the KL alone: reward, solve rate and curriculum do not know it."""
    options = {"beta": 0.1, "ref_seed": 1, "use_kl_in_reward": True, "curriculum_window": [0.1, 0.9], "max_steps": 1}
    trainer = make_online_trainer(
        tmp_path, reward_funcs=lambda completion_ids, **_: [1.0] * len(completion_ids), **options
    )
    trainer.train()
    (line,) = step_lines(trainer)
    assert line["rewards/kl/mean"] > 0.1
    assert line["grad_norm"] > 0
    assert line["reward"] == line["solve_rate"] == line["pass@4"] == line["frac_reward_zero_std"] == 1
    assert line["reward_std"] == 0
    assert set(trainer.prompt_stream.state_dict()["rates"].tolist()) == {1.0}


@pytest.mark.parametrize("filters", [{"top_p": 0.6}, {"top_k": 12}, {"min_p": 0.2}], ids=str)
def test_under_filters_ratios_are_still_of_the_whole_softmax(tmp_path, filters):
    """Log-probs before the filters agree with the policy's own, so that the first ratio is 1 and the check is silent."""
    trainer = make_online_trainer(tmp_path / "run", max_steps=1, importance_sampling_correction=True, **filters)
    recorder = Recorder(trainer)
    trainer.train()
    batch = recorder.steps[0][0]
    gap = (batch.old_logps - batch.sampler_logps)[batch.loss_mask].abs().max()
    assert gap < 1e-6
    weights = batch.importance_weights[batch.loss_mask]
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=1e-5, atol=1e-5)


def test_the_moving_factor_of_the_entropy_bonus_is_logged(tmp_path):
    """The entropy, about 5 nats, is below its target: the factor rises by 0.005 a step, once an entropy is known."""
    trainer = make_online_trainer(tmp_path, use_adaptive_entropy=True, entropy_coef=0.02, entropy_target=10.0)
    trainer.train()
    assert [line["entropy_coef"] for line in step_lines(trainer)] == pytest.approx([0.0, 0.025, 0.03])


# Names that people know.


class OwnAnswers(GRPOTrainer):
    def _generate_and_score_completions(self, prompts):
        batch = super()._generate_and_score_completions(prompts)
        return replace(batch, advantages=-batch.advantages)


class OwnRewards(GRPOTrainer):
    def _calculate_rewards(self, answers, num_tokens):
        table = super()._calculate_rewards(answers, num_tokens)
        return replace(table, rewards=torch.tensor([[float(len(ids))] for ids in answers.completion_ids]))


class OwnLogps(GRPOTrainer):
    def _get_per_token_logps_and_entropies(self, model, batch):
        stats = super()._get_per_token_logps_and_entropies(model, batch)
        return replace(stats, logps=2 * stats.logps)


class OwnLoss(GRPOTrainer):
    def _compute_loss(self, model, batch):
        output = super()._compute_loss(model, batch)
        (term,) = output.terms
        return replace(output, terms=(replace(term, coefficient=3.0),))


class OwnInputs(GRPOTrainer):
    def _prepare_inputs(self, inputs):
        batch = super()._prepare_inputs(inputs)
        return replace(batch, advantages=0.5 * batch.advantages)


class OwnData(GRPOTrainer):
    def _prepare_dataset(self, dataset, name):
        return super()._prepare_dataset(dataset, name).select([3, 4, 5, 6])


@pytest.fixture(scope="module")
def plain_gradient(tmp_path_factory):
    """Of one step of the trainer as it is."""
    (gradient,) = step_gradients(make_online_trainer(tmp_path_factory.mktemp("plain"), max_steps=1))
    return gradient


@pytest.mark.parametrize("trainer_class", [OwnAnswers, OwnRewards, OwnLogps, OwnLoss, OwnInputs, OwnData])
def test_overriding_a_method_of_trls_name_changes_the_run(tmp_path, plain_gradient, trainer_class):
    plain = plain_gradient
    (own,) = step_gradients(make_online_trainer(tmp_path, max_steps=1, trainer_class=trainer_class))
    assert relative_distance(own, plain) > 1e-3
    factors = {OwnAnswers: -1.0, OwnLoss: 3.0, OwnInputs: 0.5}
    if trainer_class in factors:
        assert relative_distance(own, factors[trainer_class] * plain) < 1e-6


# Functions of the user's own.


def plain_reinforce(tokens: PolicyTokens) -> TokenLoss:
    """REINFORCE."""
    return TokenLoss(losses=-tokens.advantages * tokens.logps, metrics={"own": tokens.mask.float()})


def test_a_callable_loss(tmp_path, plain_gradient):
    """On the policy's own answers the gradient of -A logp is that of the clipped ratio, whatever the loss's value."""
    trainer = make_online_trainer(tmp_path, max_steps=1, loss_type=plain_reinforce)
    (own,) = step_gradients(trainer)
    assert relative_distance(own, plain_gradient) < 1e-12
    assert step_lines(trainer)[0]["own"] == 1


def best_minus_worst(rewards, prompt_index):
    """1 for the best of four answers, -1 for the worst, 0 for the others."""
    totals = rewards.total().view(-1, 4)
    values = torch.zeros_like(totals)
    rows = torch.arange(len(totals))
    values[rows, totals.argmax(1)] += 1
    values[rows, totals.argmin(1)] -= 1
    return values.view(-1, 1)


def test_a_callable_advantage(tmp_path):
    trainer = make_online_trainer(tmp_path, max_steps=1, advantage=best_minus_worst)
    recorder = Recorder(trainer)
    trainer.train()
    advantages = recorder.steps[0][0].advantages
    assert sorted(advantages.flatten().tolist()) == [-1.0] * 4 + [0.0] * 8 + [1.0] * 4
    assert step_lines(trainer)[0]["frac_rows_with_gradient"] == 0.5


def test_a_loss_of_another_shape_is_refused_before_the_model_is_loaded(tmp_path):
    def mean_of_all(tokens: PolicyTokens) -> TokenLoss:
        return TokenLoss(losses=tokens.logps.mean())

    with pytest.raises(ValueError, match=r"'mean_of_all' returned losses of shape \(\).*one number a token"):
        GRPOTrainer("no/such-model", near_wanted, GRPOConfig(output_dir=str(tmp_path), loss_type=mean_of_all))


def test_a_run_made_again_is_the_same(tmp_path):
    lines = []
    for name in ("1", "2"):
        trainer = make_online_trainer(tmp_path / name, dtype=torch.float32, beta=0.1, steps_per_generation=2)
        trainer.train()
        lines.append([repeatable(line) for line in step_lines(trainer)])
    assert lines[0] == lines[1]


def test_it_learns(tmp_path):
    """Tokens of the first part of the vocabulary are rewarded, and become more frequent."""

    def low_bytes(completion_ids, **_):
        return [sum(token < 100 for token in ids) / len(ids) for ids in completion_ids]

    trainer = make_online_trainer(
        tmp_path, dtype=torch.float32, reward_funcs=low_bytes, max_steps=15, learning_rate=1e-2, advantage="rloo"
    )
    trainer.train()
    rewards = [line["reward"] for line in step_lines(trainer)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2
