"""The gallery: each algorithm is short, its run file is sound, it trains, and its loss is the paper's, worked out here.

The expected losses come from each model's own logits, one row at a time, in float64.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from _gallery import ALGORITHMS, GALLERY
from _logical_lines import logical_lines
from gallery import outcome
from online_training import END_TOKENS, make_prompts, near_wanted

from burnish import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, OnlineTrainer, RewardTable, SamplingParams
from burnish.cli.run import run
from burnish.cli.runfile import load_runfile
from burnish.data.errors import DataError
from burnish.generation.base import Prompt
from burnish.generation.native import NativeGenerator
from burnish.rewards import Scorer
from burnish.testing import (
    assert_advantage_contract,
    assert_loss_contract,
    assert_reward_contract,
    assert_trainer_contract,
)
from burnish.testing.tiny import tiny_model
from burnish.types import Answers
from conftest import make_model, make_rows, make_tokenizer

NAMES = [algorithm.name for algorithm in GALLERY]
QUIET = {"report_to": "none", "disable_tqdm": True, "cpu_tuning": "off", "save_strategy": "no", "logging_steps": 1}
ROUND = {"num_generations": 2, "per_device_train_batch_size": 8, "max_completion_length": 6, "reward_isolation": "none"}


@pytest.fixture(autouse=True)
def _beside_the_gallery(monkeypatch):
    """Its modules can be imported, anew in each test: what they register is gone after it."""
    monkeypatch.syspath_prepend(str(ALGORITHMS))
    for name in NAMES:
        sys.modules.pop(name, None)


def load(name):
    return importlib.import_module(name)


def ending_model(seed=0, dtype=torch.float64):
    model = make_model(seed, dtype)
    model.generation_config.eos_token_id = END_TOKENS
    return model


def make(trainer, tmp_path, *, rows=None, config=None, keywords=None, **options):
    """A trainer of the tiny model whose policy has moved away from its reference, and its first step."""
    draws = issubclass(trainer, OnlineTrainer)
    settings = {**QUIET, **(ROUND if draws else {}), "max_steps": 1, "learning_rate": 0.0, **options}
    made = trainer(
        ending_model(),
        args=(config or trainer.config_class)(output_dir=str(tmp_path / "run"), **settings),
        train_dataset=rows or (make_prompts(4) if draws else make_rows(4)),
        processing_class=make_tokenizer(),
        **({"reward_funcs": near_wanted} if draws else {}),
        **(keywords or {}),
    )
    taken = []
    own = made.get_batch_samples
    made.get_batch_samples = lambda *arguments: taken.append(own(*arguments)) or taken[-1]
    made.train()
    (batch,), counts = taken[0]
    return made, batch, float(made.compute_loss(made.model, batch, num_items_in_batch=counts).detach())


@torch.no_grad()
def log_probs(model, batch, row):
    """(t, V) of the distributions that the tokens of an answer are drawn from, and the tokens."""
    prompt = batch.prompt_ids[batch.prompt_index[row]][batch.prompt_mask[batch.prompt_index[row]]]
    answer = batch.completion_ids[row][batch.completion_mask[row]]
    logits = model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)[batch.loss_mask[row][batch.completion_mask[row]]], answer[
        batch.loss_mask[row][batch.completion_mask[row]]
    ]


def token_logps(model, batch, row):
    """(t,) of the trained tokens of an answer."""
    distributions, tokens = log_probs(model, batch, row)
    return distributions.gather(1, tokens[:, None])[:, 0]


def summed(model, batch):
    return [float(token_logps(model, batch, row).sum()) for row in range(len(batch))]


def averaged(model, batch):
    return [float(token_logps(model, batch, row).mean()) for row in range(len(batch))]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-12)


# What holds for all of them.


@pytest.mark.parametrize("name", NAMES)
def test_at_most_forty_lines(name):
    assert 0 < logical_lines((ALGORITHMS / f"{name}.py").read_text()) <= 40


def test_every_file_is_in_the_table():
    assert {path.stem for path in ALGORITHMS.glob("*.py")} == {path.stem for path in ALGORITHMS.glob("*.yaml")}
    assert {path.stem for path in ALGORITHMS.glob("*.py")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_run_files_are_sound(name):
    runfile = load_runfile(ALGORITHMS / f"{name}.yaml")
    assert runfile.model == "smollm2-135m"
    assert runfile.training["max_steps"] <= 30


TINY = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "per_device_eval_batch_size": 4}
TINY |= {"max_steps": 2, "warmup_steps": 0, "cpu_tuning": "off", "report_to": "none"}
TINY_ROUNDS = {"num_generations": 2, "num_generations_eval": 2, "max_completion_length": 4, "reward_isolation": "none"}


@pytest.mark.gallery
@pytest.mark.parametrize("algorithm", GALLERY, ids=NAMES)
def test_it_trains_as_its_run_file_says(algorithm, tmp_path):
    """On a tiny model and rows of the same kind; the benchmark finds its numbers in the run directory."""
    ending_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    draws = algorithm.measure != "rewards/accuracies"
    rows = [{**row, "answer": "7"} for row in make_prompts(8)] if draws else make_rows(8)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {**TINY, **(TINY_ROUNDS if draws else {}), "output_dir": tmp_path / "run"}
    options |= {"max_new_tokens": 4, "ref_model_sync_steps": 1} if algorithm.name == "spin" else {}
    changed = {f"training.{name}": str(value).lower() if value is True else value for name, value in options.items()}
    changed |= {
        "model": tmp_path / "model",
        "data.train": tmp_path / "rows.jsonl",
        "data.eval": tmp_path / "rows.jsonl",
    }
    changed |= {"ref_model": tmp_path / "model"} if algorithm.teacher else {}
    runfile = load_runfile(algorithm.run_file, [f"{name}={value}" for name, value in changed.items()])
    run(runfile, console=Console(file=io.StringIO()))
    found = outcome(algorithm, tmp_path / "run")
    assert (found["steps"], found["skipped"]) == (2, 0)
    assert found["seconds"] > 0
    assert all(0 <= float(found[when]["mean"]) <= 1 for when in ("before", "after"))


# Preferences.


def test_orpo(tmp_path):
    """-l_w - 0.5 log σ(log odds_w - log odds_l), odds p / (1 - p) with p = exp(l), mean over pairs."""
    trainer, batch, loss = make(load("orpo").ORPOTrainer, tmp_path, beta=0.5)
    scores, losses = averaged(trainer.model, batch), []
    for chosen, rejected in batch.pairs.tolist():
        odds = [math.exp(scores[row]) / (1 - math.exp(scores[row])) for row in (chosen, rejected)]
        losses.append(-scores[chosen] - 0.5 * math.log(sigmoid(math.log(odds[0]) - math.log(odds[1]))))
    assert len(losses) == 4
    assert loss == close(sum(losses) / 4)


def test_simpo(tmp_path):
    """-log σ(2 (l_w - l_l) - 0.3), and no reference is loaded."""
    options = {"loss_type": load("simpo").simple_preference, "beta": 2.0, "loss_kwargs": {"target_margin": 0.3}}
    trainer, batch, loss = make(DPOTrainer, tmp_path, config=DPOConfig, **options)
    scores = averaged(trainer.model, batch)
    losses = [-math.log(sigmoid(2 * (scores[a] - scores[b]) - 0.3)) for a, b in batch.pairs.tolist()]
    assert loss == close(sum(losses) / 4)
    assert trainer.reference.description.startswith("none of the losses reads a reference")


def test_spin(tmp_path):
    """DPO's loss between the data's answers and those that the reference draws, which are keyed by row and step."""
    keywords = {"ref_model": ending_model(1)}
    trainer, batch, loss = make(load("spin").SPINTrainer, tmp_path, keywords=keywords, beta=0.2, max_new_tokens=5)
    data = trainer.train_dataset
    policy, reference = summed(trainer.model, batch), summed(trainer.reference.model, batch)
    opponent = NativeGenerator(trainer.reference.model, pad_token_id=0)
    params, losses = SamplingParams(max_new_tokens=5, end_token_ids=tuple(END_TOKENS)), []
    for chosen, rejected in batch.pairs.tolist():
        row = data[int(batch.row_id[chosen])]
        prompt = Prompt(ids=torch.tensor(row["prompt_input_ids"]), key=row["row_id"])
        (drawn,) = opponent.generate([prompt], params, num_samples=1, seed=trainer.args.seed, round_index=0)
        ids = [batch.completion_ids[place][batch.completion_mask[place]].tolist() for place in (chosen, rejected)]
        assert ids == [row["chosen_input_ids"], drawn.token_ids.tolist()]
        gap = policy[chosen] - reference[chosen] - policy[rejected] + reference[rejected]
        losses.append(-math.log(sigmoid(0.2 * gap)))
    assert loss == close(sum(losses) / 4)


# Answers of the policy.


def table(*rewards, tokens=None):
    column = torch.tensor(rewards, dtype=torch.float64)[:, None]
    given = None if tokens is None else torch.tensor(tokens, dtype=torch.float64)
    return RewardTable(rewards=column, names=("r",), weights=torch.ones(1).double(), token_rewards=given)


def test_rloo(tmp_path):
    """Baselines by hand: of 1, 0, unscored and 3 those are 1.5, 2 and 0.5; equal rewards are 0."""
    rloo = load("rloo")
    found = rloo.leave_one_out(table(1.0, 0.0, math.nan, 3.0, 2.0, 2.0), torch.tensor([0, 0, 0, 0, 7, 7]))
    assert found[:, 0].tolist() == [-0.5, -2.0, 0.0, 2.5, 0.0, 0.0]
    options = {"advantage": rloo.leave_one_out, "loss_type": rloo.whole_answer, "config": GRPOConfig}
    trainer, batch, loss = make(GRPOTrainer, tmp_path, **options)
    scores = summed(trainer.model, batch)
    assert bool(batch.advantages.any())
    assert loss == close(-sum(a * s for a, s in zip(batch.advantages[:, 0].tolist(), scores, strict=True)) / 8)


def test_reinforce_pp():
    """Two answers of 2 and 1 tokens: reward 2 with -0.5 at its first token, and 0.

    Returns: 2, 2.5 and 0 (the total of 2 holds the -0.5). Mean 1.5; std sqrt((0.25 + 1 + 2.25) / 2) = sqrt(1.75).
    """
    advantage = load("reinforce_pp").reinforce_pp_tokens
    rewards = table(2.0, 0.0, tokens=[[-0.5, 0.0], [0.0, 0.0]])
    found = advantage(rewards, torch.tensor([0, 1]), torch.tensor([[True, True], [True, False]]), None)
    scale = math.sqrt(1.75) + 1e-8
    assert found.tolist() == [close([0.5 / scale, 1 / scale]), close([-1.5 / scale, 0.0])]


def gaps_of(trainer, batch):
    """By prompt: the log-ratio of the better answer less that of the other one, from the rewards themselves."""
    policy, reference = summed(trainer.model, batch), summed(trainer.reference.model, batch)
    columns = {index: row["wanted"] for index, row in enumerate(trainer.train_dataset)}
    found = {}
    for row in range(len(batch)):
        ids = batch.completion_ids[row][batch.completion_mask[row]].tolist()
        (reward,) = near_wanted([ids], [columns[int(batch.row_id[row])]])
        found.setdefault(int(batch.row_id[row]), []).append((reward, policy[row] - reference[row]))
    pairs = [sorted(pair, reverse=True) for pair in found.values()]
    return [0.0 if best[0] == worst[0] else best[1] - worst[1] for best, worst in pairs]


def test_online_dpo(tmp_path):
    """-log σ(0.3 (r_w - r_l)), mean over prompts; both answers are the policy's."""
    trainer, _, _ = found = make(
        load("online_dpo").OnlineDPOTrainer, tmp_path, keywords={"ref_model": ending_model(1)}, beta=0.3
    )
    gaps = gaps_of(*found[:2])
    assert len(gaps) == 4
    assert any(gaps)
    assert found[2] == close(sum(-math.log(sigmoid(0.3 * gap)) for gap in gaps) / 4)
    assert trainer.reference.description.startswith("the given ref_model")


def test_groups_that_are_cut_apart_are_refused(tmp_path):
    with pytest.raises(ValueError, match="per_device_train_batch_size=3 cuts groups of num_generations=2 answers"):
        make(
            load("online_dpo").OnlineDPOTrainer,
            tmp_path,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
        )


def test_xpo(tmp_path):
    """The pair's loss plus alpha log π of the reference's answer, means over prompts; who answers what."""
    keywords = {"ref_model": ending_model(1)}
    trainer, batch, loss = make(load("xpo").XPOTrainer, tmp_path, keywords=keywords, beta=0.3, alpha=0.01)
    policy = summed(trainer.model, batch)
    others = [score for score, which in zip(policy, batch.columns["sample"].tolist(), strict=True) if which == 1]
    pairs = sum(-math.log(sigmoid(0.3 * gap)) for gap in gaps_of(trainer, batch)) / 4
    assert len(others) == 4
    assert loss == close(pairs + 0.01 * sum(others) / 4)
    for row in range(len(batch)):
        drawn_by = trainer.reference.model if batch.columns["sample"][row] == 1 else trainer.model
        expected = token_logps(drawn_by, batch, row)
        torch.testing.assert_close(batch.sampler_logps[row, : len(expected)].double(), expected, rtol=1e-5, atol=1e-5)


def test_best_of_n(tmp_path):
    """n for the best, shared; nothing for a group without a difference. The loss is the mean of -l of the best ones."""
    best_of_n = load("best_of_n")
    rewards = table(1.0, 3.0, 3.0, math.nan, 2.0, 2.0, 0.0, 5.0)
    found = best_of_n.best_of_group(rewards, torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]))
    assert found[:, 0].tolist() == [0.0, 1.5, 1.5, 0.0, 0.0, 0.0, 0.0, 2.0]
    trainer, batch, loss = make(best_of_n.BestOfNTrainer, tmp_path, num_generations=4)
    scores, columns = averaged(trainer.model, batch), [row["wanted"] for row in trainer.train_dataset]
    groups = {}
    for row, score in enumerate(scores):
        ids = batch.completion_ids[row][batch.completion_mask[row]].tolist()
        groups.setdefault(int(batch.row_id[row]), []).append((*near_wanted([ids], [columns[batch.row_id[row]]]), score))
    best = [[score for reward, score in group if reward == max(group)[0]] for group in groups.values()]
    assert [len(group) for group in groups.values()] == [4, 4]
    assert loss == close(-sum(sum(group) / len(group) for group in best) / 2)


@pytest.mark.parametrize("interpolation", [0.0, 0.3, 1.0])
def test_gkd(interpolation, tmp_path):
    """The divergence of whole distributions at each token of the student's answers, mean over tokens."""
    keywords = {"ref_model": ending_model(1)}
    options = {"interpolation": interpolation, "temperature": 1.0}
    trainer, batch, loss = make(load("gkd").GKDTrainer, tmp_path, keywords=keywords, **options)
    values = []
    for row in range(len(batch)):
        student, _ = log_probs(trainer.model, batch, row)
        teacher, _ = log_probs(trainer.reference.model, batch, row)
        mixture = (interpolation * teacher.exp() + (1 - interpolation) * student.exp()).log()
        forwards = (teacher.exp() * (teacher - (student if interpolation == 0 else mixture))).sum(1)
        backwards = (student.exp() * (student - (teacher if interpolation == 1 else mixture))).sum(1)
        share = {0.0: 1.0, 1.0: 0.0}.get(interpolation, interpolation)
        values += (share * forwards + (1 - share) * backwards).tolist()
    assert loss == close(sum(values) / len(values))


def test_equations_are_scored_where_they_stand():
    pieces = [["So ", "3 +", " 4 =", " 7", ", not ", "2", "-3=", "1", "."], ["seven"]]
    assert load("process_reward").equations(pieces) == [[(1, 4, 1.0), (5, 8, -1.0)], 0.0]


def test_process_reward():
    """Answers to one prompt: steps 1 (token 1) and, at the end, the rest of its total, 0.5; and one step of 0.

    Steps 1, 0.5, 0: mean 0.5, std sqrt((0.25 + 0.25) / 2) = 0.5. Token 0 and 1 of the first: (0.5 + 0) / 0.5.
    """
    mask = torch.tensor([[True, True, True], [True, False, False]])
    rewards = table(1.5, 0.0, tokens=[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = load("process_reward").process(rewards, torch.tensor([3, 3]), mask, None)
    scale = 0.5 + 1e-4
    assert found.tolist() == [close([0.5 / scale, 0.5 / scale, 0.0]), close([-0.5 / scale, 0.0, 0.0])]


# Texts of tokens, for rewards of spans.


def seen_texts(texts_of_tokens, decode):
    """What a reward function is given for one answer of these tokens."""
    seen = []

    def watcher(completions, token_texts):
        seen.extend(token_texts)
        return [0.0] * len(completions)

    answers = Answers(
        prompts=["p"],
        completions=[decode(range(len(texts_of_tokens)))],
        completion_ids=[range(len(texts_of_tokens))],
        prompt_index=[0],
        row_id=[0],
        decode=decode,
    )
    Scorer(watcher, isolation="none").score(answers, num_tokens=len(texts_of_tokens))
    return seen[0]


def test_a_character_of_several_tokens_belongs_to_the_last():
    parts = [b"a", "ñ".encode()[:1], "ñ".encode()[1:] + b" b", b""]
    found = seen_texts(parts, lambda ids: b"".join(parts[i] for i in ids).decode(errors="replace"))
    assert found == ["a", "", "ñ b", ""]


def test_a_column_may_not_have_the_name():
    with pytest.raises((ValueError, DataError), match="'token_texts'"):
        Scorer("number").check_columns(["answer", "token_texts"])


# The laws of functions.


# That of best-of-n is none: the second best answer is worth no more than the worst one.
ADVANTAGES = {"rloo": "leave_one_out", "reinforce_pp": "reinforce_pp_tokens", "process_reward": "process"}


@pytest.mark.parametrize(("module", "name"), ADVANTAGES.items())
def test_advantages_keep_the_laws(module, name):
    assert_advantage_contract(vars(load(module))[name])


def test_losses_and_rewards_keep_the_laws():
    assert_loss_contract(load("simpo").simple_preference, beta=2.0)
    assert_loss_contract(load("rloo").whole_answer)
    assert_reward_contract(load("process_reward").equations)


# The laws of trainers. The teacher of GKD must be another model than the student.


def another_model():
    return {"ref_model": tiny_model(1)}


def spans(completion_ids, wanted, **_):
    """A reward of the first token, and one of the last."""
    scores = near_wanted(completion_ids, wanted)
    return [
        [(0, 1, (ids[0] % 5) / 5), (len(ids) - 1, len(ids), score)]
        for ids, score in zip(completion_ids, scores, strict=True)
    ]


def as_trainer(name):
    """A row of the gallery as arguments of its contract: its own trainer, or one of the library with its functions."""
    module = load(name)
    own = {
        "orpo": ("ORPOTrainer", {}),
        "spin": ("SPINTrainer", {"options": {"max_new_tokens": 6}}),
        "online_dpo": ("OnlineDPOTrainer", {}),
        "xpo": ("XPOTrainer", {}),
        "best_of_n": ("BestOfNTrainer", {}),
        "gkd": ("GKDTrainer", {"make_keywords": another_model}),
    }
    if name in own:
        trainer, keywords = own[name]
        return vars(module)[trainer], keywords
    kl = {"beta": 0.1, "use_kl_in_reward": True, "kl_estimator": "k1"}
    functions = {
        "simpo": lambda: (DPOTrainer, {"options": {"loss_type": module.simple_preference, "beta": 2.0}}),
        "rloo": lambda: (
            GRPOTrainer,
            {"options": {"loss_type": module.whole_answer, "advantage": module.leave_one_out}},
        ),
        "reinforce_pp": lambda: (
            GRPOTrainer,
            {"options": {"loss_type": "ppo", "advantage": module.reinforce_pp_tokens, **kl}},
        ),
        "process_reward": lambda: (
            GRPOTrainer,
            {"options": {"loss_type": "ppo", "advantage": module.process}, "reward_funcs": spans},
        ),
    }
    trainer, keywords = functions[name]()
    return trainer, {"processes": 1, **keywords}  # that of the library is tried on two by its own tests


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_trainers_keep_the_laws(name):
    trainer, keywords = as_trainer(name)
    assert_trainer_contract(trainer, **keywords)
