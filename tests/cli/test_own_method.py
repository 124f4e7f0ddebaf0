"""`method: module:Trainer`: a trainer of the user's, from a file beside the run file, is a method as any other."""

from __future__ import annotations

import io
import json
import sys

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from burnish.cli.app import app
from burnish.cli.checkup import check_up
from burnish.cli.explain import explain
from burnish.cli.methods import METHODS, load
from burnish.cli.preview import choose_rows, preview_rows
from burnish.cli.run import run
from burnish.cli.runfile import RunFileError, load_runfile
from burnish.cli.schema import facts_of
from burnish.cli.template import template
from burnish.cli.trace import trace_run
from burnish.runtime.rundir import read_metrics
from conftest import make_model, make_rows, make_tokenizer

TRAINERS = '''
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid

from burnish.data.tokenize import prepare_preferences
from burnish.importance import ImportanceWeights
from burnish.trainers.rows import preparation_options
from burnish import GRPOConfig, GRPOTrainer, LossOutput, Mean, PolicyConfig, PolicyTrainer, arg, forward


@dataclass
class MarginConfig(PolicyConfig):
    """Options of MarginTrainer."""

    gamma: float = arg(1.0, "By how much the chosen answer should lead.")

    def __post_init__(self):
        super().__post_init__()
        if self.gamma < 0:
            raise ValueError(f"gamma={self.gamma}; allowed: 0 or more")


class MarginTrainer(PolicyTrainer):
    """loss = -log sigmoid(lead - gamma), of mean log-probs."""

    config_class = MarginConfig

    def loss(self, model, batch):
        chosen, rejected = forward(model, batch).sequence_mean()[batch.pairs].unbind(-1)
        lead = chosen - rejected
        metrics = {"rewards/accuracies": Mean.of(lead > 0)}
        return LossOutput.of(-logsigmoid(lead - self.args.gamma), per="pair", metrics=metrics)


class HalfTrainer(PolicyTrainer):
    config_class = MarginConfig


class PoemConfig(MarginConfig):
    row_kind = "poems"


class PoemTrainer(MarginTrainer):
    """Rows of a kind of its own."""

    config_class = PoemConfig

    def _prepare_dataset(self, dataset, name):
        rows = Dataset.from_list([{**row, "prompt": row["poem"]} for row in dataset]).remove_columns("poem")
        options = preparation_options(self.processing_class, self.args, end_token_ids=self.end_token_ids, name=name)
        prepared, self.data_reports[name] = prepare_preferences(rows, **{**options, "kind": "preferences"})
        return prepared


class Alone:
    pass


class TwiceTrainer(GRPOTrainer):
    """GRPO whose rewards count twice."""

    def _shape_rewards(self, rewards, batch):
        return super()._shape_rewards(rewards, batch)


def share_of_e(completions, **kwargs):
    return [str(answer).count("e") / 10 for answer in completions]


def best(rewards, prompt_index):
    total = rewards.total()
    return ((total - total.mean()) * (total > total.mean()))[:, None]


def squared(logps, ref_logps):
    return (logps - ref_logps) ** 2


def halved(old_logps, sampler_logps, mask):
    weights = torch.where(mask, 0.5, 1.0)
    return ImportanceWeights(weights=weights, metrics={"sampling/own": weights})
'''
OPTIONS = {"per_device_train_batch_size": 2, "logging_steps": 1, "cpu_tuning": "off", "report_to": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model, rows and the module, in a directory that is not the current one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    model = make_model(max_position_embeddings=2048)
    model.generation_config.eos_token_id = list(range(2, 259, 10))
    model.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(12)))
    (folder / "trainers_of_this_test.py").write_text(TRAINERS)
    yield folder
    sys.modules.pop("trainers_of_this_test", None)
    sys.path[:] = [place for place in sys.path if place != str(folder)]


def write(folder, method="trainers_of_this_test:MarginTrainer", *, training=None, **keys):
    """A run file in the directory, whose name it returns."""
    document = {
        "method": method,
        "model": str(folder / "model"),
        "data": {"train": str(folder / "rows.jsonl"), "eval_rows": 4},
        "samples": 1,
        "max_new_tokens": 3,
        **keys,
        "training": {**OPTIONS, **(training or {})},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    return folder / "run.yaml"


def problems(folder, method, **training):
    with pytest.raises(RunFileError) as caught:
        load_runfile(write(folder, method, training=training))
    return "\n".join(caught.value.problems)


def test_train_then_resume(folder, tmp_path):
    """With the module beside the run file only, and resumed from the run directory alone."""
    own = tmp_path / "run"
    options = {"gamma": 0.5, "max_steps": 3, "output_dir": str(own)}
    screen = io.StringIO()
    run(load_runfile(write(folder, training=options)), console=Console(file=screen, width=100))
    assert "trainers_of_this_test:MarginTrainer on" in screen.getvalue()
    assert "loss: MarginTrainer; learning rate" in screen.getvalue()
    stored = yaml.safe_load((own / "run.yaml").read_text())
    assert (stored["method"], stored["training"]["gamma"]) == ("trainers_of_this_test:MarginTrainer", 0.5)
    assert stored["import_from"] == str(folder)
    before = load_file(own / "model.safetensors")
    sys.modules.pop("trainers_of_this_test")
    sys.path.remove(str(folder))
    result = CliRunner().invoke(app, ["resume", str(own), "--set", "max_steps=5"])
    assert result.exit_code == 0, result.output
    assert "steps 4 to 5" in result.output
    after = load_file(own / "model.safetensors")
    assert any(not before[name].equal(after[name]) for name in before)
    assert [line["step"] for line in read_metrics(own / "metrics.jsonl") if "grad_norm" in line] == [1, 2, 3, 4, 5]


def test_functions_of_an_online_trainer(folder, tmp_path):
    """A subclass of GRPOTrainer with a reward, an advantage, a KL estimator and a correction of the user's."""
    module = "trainers_of_this_test"
    options = {"num_generations": 2, "max_completion_length": 3, "max_steps": 1, "output_dir": str(tmp_path / "run")}
    options |= {
        "reward_isolation": "none",
        "beta": 0.1,
        "advantage": f"{module}:best",
        "kl_estimator": f"{module}:squared",
        "importance_sampling_correction": True,
        "importance_sampling_mode": f"{module}:halved",
    }
    config = write(folder, f"{module}:TwiceTrainer", training=options, rewards=f"{module}:share_of_e")
    screen = io.StringIO()
    run(load_runfile(config), console=Console(file=screen, width=100))
    assert "advantage best, beta 0.1" in screen.getvalue()
    stored = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    (line,) = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "grad_norm" in line]
    assert line["sampling/own"] == 0.5
    assert stored["training"]["kl_estimator"] == f"{module}:squared"
    assert load_runfile(tmp_path / "run" / "run.yaml").training["advantage"] == f"{module}:best"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("no_module_of_this_test:T", "there is no module 'no_module_of_this_test' here or among the installed"),
        ("trainer_of_this_test:T", "did you mean 'trainers_of_this_test'?"),
        ("trainers_of_this_test:MarginTraner", "has no 'MarginTraner', did you mean 'MarginTrainer'"),
        ("trainers_of_this_test:squared", "is a function, and no trainer. Allowed: a subclass of PolicyTrainer"),
        ("trainers_of_this_test:Alone", "is a class, and no trainer"),
        ("trainers_of_this_test:HalfTrainer", "does not define loss: def loss(self, model, batch)"),
        ("trainers of this test", 'Allowed: one of "dpo"'),
        ("dqo", "did you mean 'dpo'"),
    ],
)
def test_what_is_no_trainer_is_named(folder, method, words):
    assert words in problems(folder, method)
    assert "a trainer of your own as module:Trainer" in problems(folder, "dqo")


def test_a_module_that_fails_is_named_with_its_error(folder):
    (folder / "failing_of_this_test.py").write_text("1 / 0\n")
    assert "importing failing_of_this_test raised ZeroDivisionError: division by zero" in problems(
        folder, "failing_of_this_test:Trainer"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gama": 1.0}, "gama: is no known key, did you mean 'gamma'"),
        ({"gamma": "high"}, 'gamma: is "high", text'),
        ({"gamma": -1.0}, "MarginConfig refuses the options: gamma=-1.0; allowed: 0 or more"),
        ({"beta": 0.1}, "beta: is no known key"),
        ({"max_steps": 0}, "max_steps: is 0; allowed: 1 or more"),
    ],
)
def test_options_are_those_of_its_configuration(folder, options, words):
    assert words in problems(folder, "trainers_of_this_test:MarginTrainer", **options)


def test_the_ranges_of_its_options_are_its_own(folder):
    """PPO has a `gamma` of at most 1."""
    assert load_runfile(write(folder, training={"gamma": 3.5})).training["gamma"] == 3.5


def test_keys_that_it_does_not_read_are_refused(folder):
    with pytest.raises(RunFileError, match="ref_model: has no effect: trainers_of_this_test:MarginTrainer has no refe"):
        load_runfile(write(folder, ref_model="smollm2-135m"))


@pytest.mark.parametrize("option", ["advantage", "kl_estimator", "loss_type", "importance_sampling_mode"])
def test_functions_that_are_not_there_are_named(folder, option):
    config = write(folder, "grpo", rewards="number", training={option: "no_module_of_this_test:f", "beta": 0.1})
    with pytest.raises(RunFileError, match=f"{option}: is 'no_module_of_this_test:f', but there is no module"):
        load_runfile(config)


def test_preview_template_and_explanation(folder):
    name = "trainers_of_this_test:MarginTrainer"
    seen = preview_rows(load_runfile(write(folder)), choose_rows(2, None))
    assert len(seen.views) == 2
    said = explain(name)
    assert "loss = -log sigmoid(lead - gamma)" in said
    assert "gamma = 1.0: By how much the chosen answer should lead." in said
    made = yaml.safe_load(template(name))
    assert (made["method"], made["training"]["gamma"]) == (name, 1.0)
    assert "rewards" not in made
    with pytest.raises(ValueError, match="has no 'Nobody'"):
        explain("trainers_of_this_test:Nobody")


def test_rows_of_a_kind_of_its_own(folder, tmp_path):
    """check and preview say that they did not look, and why; train runs, and trace shows a batch."""
    rows = [{"poem": f"o rose {n}", "chosen": " thou art", "rejected": " sick"} for n in range(12)]
    (folder / "poems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"max_steps": 1, "output_dir": str(tmp_path / "run")}
    data = {"train": str(folder / "poems.jsonl"), "eval_rows": 4}
    config = write(folder, "trainers_of_this_test:PoemTrainer", training=options, data=data)
    why = "they are poems, a kind of its own (row_kind) that trainers_of_this_test:PoemTrainer alone prepares"
    found = check_up(str(config))
    assert not found.problems
    assert f"12 rows not looked at: {why}" in "\n".join(found.lines)
    (source,) = found.as_dict()["sources"]
    assert (source["num_checked"], source["not_checked_because"].startswith(why)) == (0, True)
    runfile = load_runfile(config)
    with pytest.raises(ValueError, match=r"cannot be shown: they are poems.*burnish trace"):
        preview_rows(runfile, choose_rows(2, None))
    assert trace_run(runfile).walls
    run(runfile, console=Console(file=io.StringIO(), width=100))
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", METHODS)
def test_facts_of_the_librarys_own_are_read_off_their_classes(name):
    _, trainer = load(METHODS[name])
    draws = name in ("grpo", "ppo")
    assert facts_of(trainer) == METHODS[name].facts
    assert METHODS[name].draws_answers == draws
    assert METHODS[name].takes_reference == (name not in ("reward", "sft"))
    assert METHODS[name].writes_answers == (name != "reward")
