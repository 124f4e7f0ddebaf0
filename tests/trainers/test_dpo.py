"""DPOTrainer from outside: what it accepts, refuses, logs and guards."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from burnish import DPOConfig, DPOTrainer, LossOutput, PolicyTrainer, preference_loss
from burnish.models import attention
from burnish.models.introspect import trunk_of
from burnish.runtime.guard import DivergedError
from burnish.runtime.rundir import read_events, read_metrics
from conftest import make_model, make_rows, make_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from training import make_trainer


def events(trainer_dir: Path, kind: str) -> list[dict]:
    return [event for event in read_events(trainer_dir / "events.jsonl") if event["kind"] == kind]


class Poisoned(DPOTrainer):
    """The chosen log-probs of one row become what `poison` says, in one step."""

    poison = math.nan
    at_steps = (1,)

    def concatenated_forward(self, model, batch):
        stats = super().concatenated_forward(model, batch)
        if self.state.global_step not in self.at_steps or not model.training:
            return stats
        bad = torch.zeros_like(stats.logps)
        bad[0, 0] = self.poison
        type(self).rows = [int(batch.row_id[0])]
        return type(stats)(logps=stats.logps + bad, mask=stats.mask, entropy=stats.entropy, extra=stats.extra)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_never_reaches_the_optimizer(tmp_path, poison):
    Poisoned.poison = poison
    trainer = make_trainer(tmp_path / "run", trainer_class=Poisoned, lr_scheduler_type="constant")
    before: list[dict[str, torch.Tensor]] = []
    own = trainer.get_batch_samples

    def snapshot(*arguments):
        before.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        return own(*arguments)

    trainer.get_batch_samples = snapshot
    trainer.train()
    assert all(torch.equal(before[1][name], before[2][name]) for name in before[1]), "the bad step changed weights"
    assert not all(torch.equal(before[2][name], before[3][name]) for name in before[1]), "training did not go on"
    assert all(torch.isfinite(tensor).all() for tensor in trainer.model.state_dict().values())
    (event,) = events(tmp_path / "run", "skipped_step")
    assert event["step"] == 2
    assert event["rows"] == Poisoned.rows
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "grad_norm" in line]
    assert not math.isfinite(lines[1]["loss"])
    assert [line["num_skipped_steps"] for line in lines] == [0, 1, 1, 1]
    assert all(math.isfinite(line["loss"]) for line in (lines[0], lines[2], lines[3]))


def test_a_gradient_that_is_not_finite_names_its_parameter(tmp_path):
    trainer = make_trainer(tmp_path / "run", lr_scheduler_type="constant")
    weight = trainer.model.model.layers[1].mlp.up_proj.weight
    weight.register_hook(lambda grad: grad * math.nan if trainer.state.global_step == 2 else grad)
    trainer.train()
    (event,) = events(tmp_path / "run", "skipped_step")
    assert event["step"] == 3
    assert event["parameters"] == ["model.layers.1.mlp.up_proj.weight"]
    assert event["rows"] == []
    assert len(event["all_rows"]) == 4


def test_too_many_bad_steps_end_the_run(tmp_path):
    Poisoned.poison, Poisoned.at_steps = math.nan, (1, 2, 3)
    try:
        trainer = make_trainer(tmp_path / "run", trainer_class=Poisoned, max_skipped_steps=2)
        with pytest.raises(DivergedError, match="in 2 steps in a row"):
            trainer.train()
    finally:
        Poisoned.at_steps = (1,)


def test_reference_is_a_copy_of_a_model_in_memory(tmp_path):
    trainer = make_trainer(tmp_path / "run", ref_seed=None)
    original = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    reference = trainer.reference.model.state_dict()
    assert all(torch.equal(reference[name], tensor) for name, tensor in original.items())
    assert not all(torch.equal(trainer.model.state_dict()[name], tensor) for name, tensor in original.items())


def test_reference_from_columns_equals_the_model_it_came_from(tmp_path):
    """`ref_chosen_logps` and `ref_rejected_logps` in the rows, and no reference in memory."""
    given = make_trainer(tmp_path / "given", ref_seed=1)
    rows = make_rows(14)
    for row in rows:
        batch = given.data_collator([given._prepare_dataset([row], "one")[0]])
        row["ref_chosen_logps"], row["ref_rejected_logps"] = given.reference.logps(batch).tolist()
    columns = make_trainer(tmp_path / "columns", ref_seed=None, rows=rows)
    assert "columns" in columns.reference.description
    paired = [{k: v for k, v in row.items() if not k.startswith("ref_")} for row in rows]
    for row, source in zip(paired, rows, strict=True):
        row["ref_logps"] = [source["ref_chosen_logps"], source["ref_rejected_logps"]]
    one_column = make_trainer(tmp_path / "one_column", ref_seed=None, rows=paired)
    assert one_column.train_dataset[3] == columns.train_dataset[3]
    given.train()
    columns.train()
    losses = [[line["loss"] for line in t.state.log_history if "grad_norm" in line] for t in (given, columns)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_ref_logps_that_are_no_pair_are_named(tmp_path):
    rows = [{**row, "ref_logps": [-1.0, -2.0]} for row in make_rows(3)]
    rows[1]["ref_logps"] = [-1.0]
    with pytest.raises(ValueError, match="row 1, column 'ref_logps'"):
        make_trainer(tmp_path, ref_seed=None, rows=rows)


def test_reference_and_columns_contradict(tmp_path):
    rows = [{**row, "ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0} for row in make_rows(4)]
    with pytest.raises(ValueError, match="leave out one of the two"):
        make_trainer(tmp_path, ref_seed=1, rows=rows)


def test_the_policy_cannot_be_its_own_reference(tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match="policy itself"):
        DPOTrainer(
            model,
            args=DPOConfig(output_dir=str(tmp_path)),
            ref_model=model,
            train_dataset=make_rows(4),
            processing_class=make_tokenizer(),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "sigmiod"}, "did you mean 'sigmoid'"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "does not read it"),
        ({"loss_type": "sigmoid", "loss_kwargs": {"gamma": 1.0}}, "read by none"),
        ({"beta": 0.0}, "above 0"),
        ({"label_smoothing": 0.5}, "not including"),
        ({"loss_type": ["sigmoid", "ipo"], "loss_weights": [1.0]}, "one for each"),
        ({"padding_free": True}, "not built yet"),
        ({"auto_find_batch_size": True}, "not supported"),
        ({"on_bad_row": "skip"}, "error, drop"),
        ({"max_length": 0}, "max_length"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options)


def test_options_of_trl_at_their_defaults_are_accepted(tmp_path):
    config = DPOConfig(
        output_dir=str(tmp_path),
        precompute_ref_log_probs=False,
        f_divergence_type="reverse_kl",
        padding_free=False,
        gradient_checkpointing=False,
        bf16=False,
        loss_type="sigmoid",
    )
    assert config.loss_type == ["sigmoid"]


def test_an_unknown_option_is_named_with_its_neighbour(tmp_path):
    with pytest.raises(TypeError, match="did you mean 'learning_rate'"):
        DPOConfig(output_dir=str(tmp_path), learnin_rate=1e-6)


def test_a_callable_is_a_loss(tmp_path):
    def squared(pair, *, beta):
        return (beta * pair.logratio_diff - 1) ** 2

    trainer = make_trainer(tmp_path / "run", loss_type=squared, ref_seed=None)
    trainer.train()
    first = next(line for line in trainer.state.log_history if "grad_norm" in line)
    assert first["loss"] == pytest.approx(1.0, abs=1e-12)


def test_a_registered_loss_is_found_by_name(tmp_path):
    @preference_loss("test_linear")
    def linear(pair, *, beta):
        return -beta * pair.logratio_diff

    trainer = make_trainer(tmp_path / "run", loss_type="test_linear", ref_seed=None)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    assert [line["loss"] for line in lines] == pytest.approx([-line["rewards/margins"] for line in lines], abs=1e-9)


def test_first_step_event(tmp_path):
    make_trainer(tmp_path / "own", ref_seed=None).train()
    (event,) = events(tmp_path / "own", "first_step")
    assert event["ok"]
    assert event["max_difference"] < 1e-9
    make_trainer(tmp_path / "other", ref_seed=1).train()
    (event,) = events(tmp_path / "other", "first_step")
    assert not event["ok"]
    assert "not log 2" in event["message"]


def test_the_first_step_check_finds_a_wrong_forward(tmp_path):
    class Wrong(DPOTrainer):
        def concatenated_forward(self, model, batch):
            stats = super().concatenated_forward(model, batch)
            return type(stats)(logps=stats.logps * 1.1, mask=stats.mask, entropy=stats.entropy, extra=stats.extra)

    make_trainer(tmp_path / "run", ref_seed=None, trainer_class=Wrong).train()
    (event,) = events(tmp_path / "run", "first_step")
    assert not event["ok"]
    assert "scored by itself" in event["message"]


def test_run_directory(tmp_path):
    trainer = make_trainer(tmp_path / "run", save_strategy="epoch")
    trainer.train()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["seed"] == 5
    assert manifest["datasets"][0]["num_rows"] == 14
    assert "beta: 0.1" in (tmp_path / "run" / "run.yaml").read_text()
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "grad_norm" in line] == [
        1,
        2,
        3,
        4,
    ]


def test_a_second_run_in_the_same_directory_is_refused_or_set_aside(tmp_path):
    make_trainer(tmp_path / "run").train()
    with pytest.raises(ValueError, match="already holds a run"):
        make_trainer(tmp_path / "run").train()
    make_trainer(tmp_path / "run", overwrite_output_dir=True).train()
    assert (tmp_path / "run" / "previous-1" / "metrics.jsonl").is_file()


def test_loss_must_have_the_shape_of_its_unit(tmp_path):
    class Reduced(DPOTrainer):
        def loss(self, model, batch):
            output = super().loss(model, batch)
            return LossOutput.of(output.terms[0].losses.mean(), per="pair")

    with pytest.raises(ValueError, match="one loss for each pair"):
        make_trainer(tmp_path / "run", trainer_class=Reduced).train()


def test_arguments_in_the_order_of_trl_are_named(tmp_path):
    """TRL takes ref_model second; here it is a keyword, and the message says so."""
    with pytest.raises(TypeError, match="everything else is a keyword: DPOTrainer"):
        DPOTrainer(make_model(), make_model(1), train_dataset=make_rows(2), processing_class=make_tokenizer())


def test_policy_trainer_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        PolicyTrainer(make_model(), train_dataset=make_rows(2), processing_class=make_tokenizer())


def test_gradient_checkpointing_gives_the_same_gradient(tmp_path):
    """With shared prompts in both, and the run says so."""
    losses, lines, attentions = [], [], []
    for on in (False, True):
        trainer = make_trainer(tmp_path / str(on), gradient_checkpointing=on)
        trunk = trunk_of(trainer.policy)
        trunk.layers[0].self_attn.register_forward_pre_hook(
            lambda part, _: attentions.append((part.config._attn_implementation, torch.is_grad_enabled()))
        )
        trainer.train()
        losses.append([line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line])
        lines += [event["message"] for event in events(tmp_path / str(on), "layout")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert lines[0].endswith("(layout tree).")
    assert lines[1].endswith("(layout tree), under gradient checkpointing too.")
    assert {name for name, has_gradient in attentions if has_gradient} == {attention.NAME}


def test_report_to_tensorboard(tmp_path):
    make_trainer(tmp_path / "run", report_to="tensorboard").train()
    assert any(path.name.startswith("events.out") for path in (tmp_path / "run").rglob("*"))


@pytest.mark.slow
def test_no_socket_is_opened(tmp_path):
    """With the hub offline and report_to none, a run opens no network socket at all."""
    script = f"""
import sys
def audit(event, args):
    if event == "socket.connect" and args[0].family != 1:
        raise SystemExit("network: " + repr(args))
sys.addaudithook(audit)
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "invariants")]!r}
from training import make_trainer
make_trainer({str(tmp_path / "run")!r}).train()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_without_clipping_a_bad_parameter_is_named_too(tmp_path):
    trainer = make_trainer(tmp_path / "run", max_grad_norm=0.0)
    weight = trainer.model.model.layers[0].mlp.down_proj.weight
    weight.register_hook(lambda grad: grad * math.inf if trainer.state.global_step == 1 else grad)
    trainer.train()
    (event,) = events(tmp_path / "run", "skipped_step")
    assert event["parameters"] == ["model.layers.0.mlp.down_proj.weight"]
