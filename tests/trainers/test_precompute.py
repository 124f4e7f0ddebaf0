from __future__ import annotations

import gc
import json
import sys
import weakref
from pathlib import Path

import pytest
import torch
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from training import NUM_ROWS, make_trainer, relative_distance, step_gradients

from burnish import DPOConfig, DPOTrainer
from burnish.models.refcache import Precomputed, StartingPolicy
from burnish.models.reference import FrozenModel
from burnish.runtime.rundir import read_events
from burnish.trainers.logp_columns import scoring_order
from burnish.trainers.precompute import (
    cache_key,
    check_can_precompute,
    precompute,
    score_rows,
)
from conftest import make_model, make_rows, make_tokenizer
from ranks import launch

pytestmark = pytest.mark.gallery  # a gallery: make test has one of each kind elsewhere


class Precomputing(DPOTrainer):
    def before_training(self):
        if self.args.precompute_ref_log_probs and not isinstance(self.reference, Precomputed):
            scored = precompute(self)
            self.train_dataset, self.eval_dataset, self.reference = scored.train, scored.evaluation, scored.reference


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


def make_precomputing(directory, **options) -> DPOTrainer:
    return make_trainer(directory, trainer_class=Precomputing, **{"precompute_ref_log_probs": True, **options})


def events_of(directory: Path, kind: str) -> list[dict]:
    return [event for event in read_events(directory / "events.jsonl") if event["kind"] == kind]


# Values.


@pytest.mark.parametrize("ref_seed", [1, None], ids=["given", "policy"])
def test_exactly_the_live_values_of_the_same_batches(tmp_path, ref_seed):
    """Float32, the whole data set as one batch, longest row first: bit for bit what the reference says."""
    trainer = make_precomputing(tmp_path, dtype=torch.float32, ref_seed=ref_seed, precompute_ref_batch_size=NUM_ROWS)
    rows = trainer.train_dataset
    order = scoring_order(rows)
    live = trainer.reference.logps(trainer.data_collator([rows[i] for i in order]))
    train = precompute(trainer).train
    assert torch.tensor(train["ref_chosen_logps"][:])[order].tolist() == live[0::2].tolist()
    assert torch.tensor(train["ref_rejected_logps"][:])[order].tolist() == live[1::2].tolist()


def test_close_to_the_live_values_of_any_batches(tmp_path):
    trainer = make_precomputing(tmp_path, dtype=torch.float32, precompute_ref_batch_size=3)
    train = precompute(trainer).train
    for row in train:
        live = trainer.reference.logps(trainer.data_collator([row]))
        assert [row["ref_chosen_logps"], row["ref_rejected_logps"]] == pytest.approx(live.tolist(), rel=1e-5)


def test_token_values_are_aligned_with_the_stored_answers(tmp_path):
    """One number for each answer token, 0 where it is not trained, adding up to the answer's log-prob."""
    trainer = make_precomputing(tmp_path, ld_alpha=0.5)
    rows = trainer.train_dataset.to_list()
    for row in rows:
        row["chosen_loss_mask"][0] = False  # the first token is a part of the template, say
    trainer.train_dataset = Dataset.from_list(rows)
    scored = precompute(trainer)
    assert scored.reference.knows_tokens
    for row in scored.train:
        live = trainer.reference.token_logps(trainer.data_collator([row]))
        for answer, logps in zip(("chosen", "rejected"), live, strict=True):
            stored = row[f"ref_{answer}_token_logps"]
            assert len(stored) == len(row[f"{answer}_input_ids"])
            assert stored == pytest.approx(logps[: len(stored)].tolist(), rel=1e-12)
            trained = row[f"{answer}_loss_mask"]
            assert all((value != 0) == is_trained for value, is_trained in zip(stored, trained, strict=True))


@pytest.mark.parametrize("options", [{}, {"ld_alpha": 0.3}, {"loss_type": ["ipo", "sft"]}], ids=["row", "token", "two"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"])
def test_the_same_gradients_as_with_the_live_reference(tmp_path, options, dtype, tolerance):
    live = step_gradients(make_trainer(tmp_path / "live", dtype=dtype, **options))
    trainer = make_precomputing(tmp_path / "once", dtype=dtype, precompute_ref_batch_size=5, **options)
    once = step_gradients(trainer)
    assert len(once) == len(live) == 4
    assert isinstance(trainer.reference, Precomputed)
    assert max(relative_distance(mine, other) for mine, other in zip(once, live, strict=True)) < tolerance


def test_the_policy_as_its_own_reference_equals_a_copy(tmp_path):
    """Without a ref_model no second model is ever made, and the training is the same."""
    live = step_gradients(make_trainer(tmp_path / "live", ref_seed=None))
    trainer = make_precomputing(tmp_path / "once", ref_seed=None)
    assert isinstance(trainer.reference, StartingPolicy)
    assert trainer.reference.model is trainer.model
    once = step_gradients(trainer)
    assert max(relative_distance(mine, other) for mine, other in zip(once, live, strict=True)) < 1e-12


def test_evaluation_equals_the_live_reference(tmp_path):
    """Two evaluation sets, before any step (the model itself) and after training (the columns)."""
    held_out = {"first": make_rows(5), "second": make_rows(9)[5:]}
    found = []
    for name, make in (("live", make_trainer), ("once", make_precomputing)):
        trainer = make(tmp_path / name)
        trainer.eval_dataset = trainer._prepare_eval(held_out)
        before = trainer.evaluate()
        trainer.train()
        found.append((before, trainer.evaluate()))
    for live, once in zip(*found, strict=True):
        assert len([key for key in live if key.endswith("_loss")]) == 2
        for key in live:
            if not any(word in key for word in ("runtime", "per_second", "kl")):  # kl needs the reference's tokens
                assert once[key] == pytest.approx(live[key], rel=1e-9, nan_ok=True), key


def test_values_do_not_depend_on_the_order_of_the_rows(tmp_path):
    """Rows of different lengths in another order form the same batches, so that even the last bit is the same."""
    texts = [{"prompt": "ab", "chosen": "c" * (2 * i + 1), "rejected": "d" * (i + 1)} for i in range(9)]
    found = []
    for name, rows in (("one", texts), ("other", texts[::-1])):
        trainer = make_precomputing(tmp_path / name, dtype=torch.float32, rows=rows, precompute_ref_batch_size=4)
        train = precompute(trainer).train
        found.append(sorted(zip(map(len, train["chosen_input_ids"]), train["ref_chosen_logps"], strict=True)))
    assert found[0] == found[1]


def test_rows_that_were_dropped_leave_no_gap(tmp_path):
    """`on_bad_row="drop"` leaves an index over the table; numbers go to the rows that are left."""
    rows = make_rows(6)
    rows[2]["chosen"] = []
    trainer = make_precomputing(tmp_path, rows=rows, on_bad_row="drop")
    train = precompute(trainer).train
    assert train["row_id"][:] == [0, 1, 3, 4, 5]
    for row in train:
        live = trainer.reference.logps(trainer.data_collator([row]))
        assert [row["ref_chosen_logps"], row["ref_rejected_logps"]] == pytest.approx(live.tolist(), rel=1e-10)


@pytest.mark.parametrize("options", [{}, {"ld_alpha": 0.5}], ids=["row", "token"])
def test_rows_of_several_completions(tmp_path, options):
    """Two, three and four graded completions, ties among them: the gradients are those of the live reference."""
    words = ["red", "green apples", "a long walk home", "no"]
    rows = [
        {
            "prompt": f"Question {i}",
            "completions": [f"{w} {i}" for w in words[: 2 + i % 3]],
            "scores": [2, 5, 2, 1][: 2 + i % 3],
        }
        for i in range(9)
    ]
    live = step_gradients(make_trainer(tmp_path / "live", rows=rows, **options))
    trainer = make_precomputing(tmp_path / "once", rows=rows, precompute_ref_batch_size=4, **options)
    once = step_gradients(trainer)
    assert isinstance(trainer.reference, Precomputed)
    assert max(relative_distance(mine, other) for mine, other in zip(once, live, strict=True)) < 1e-12


def test_ties_are_two_pairs_of_the_same_answers(tmp_path):
    rows = [{**row, "tie": i % 3 == 0} for i, row in enumerate(make_rows(6))]
    live = step_gradients(make_trainer(tmp_path / "live", rows=rows))
    once = step_gradients(make_precomputing(tmp_path / "once", rows=rows))
    assert max(relative_distance(mine, other) for mine, other in zip(once, live, strict=True)) < 1e-12


# Memory.


def test_the_reference_model_is_let_go(tmp_path):
    trainer = make_precomputing(tmp_path)
    assert isinstance(trainer.reference, FrozenModel)
    model = weakref.ref(trainer.reference.model)
    trainer.train()
    gc.collect()
    assert model() is None
    assert trainer.reference.description.startswith("computed once before training, by the given ref_model")


# The cache.


def test_a_second_run_reads_what_the_first_one_kept(tmp_path, cache):
    gradients = []
    for name in ("first", "second"):
        trainer = make_precomputing(tmp_path / name, dtype=torch.float32)
        gradients.append(step_gradients(trainer))
    assert [e["computed"] for name in ("first", "second") for e in events_of(tmp_path / name, "reference")] == [
        True,
        False,
    ]
    assert len(list(cache.iterdir())) == 1
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_ref_model_and_the_policy_share_the_file_if_they_are_one_model(tmp_path, cache):
    """A name, a module, or the policy itself: only the weights count."""
    for name, seed in (("policy", None), ("given", 0)):
        make_precomputing(tmp_path / name, ref_seed=seed).train()
    assert len(list(cache.iterdir())) == 1


CHANGES = {
    "batch": {"precompute_ref_batch_size": 5},
    "tokens": {"ld_alpha": 0.5},
    "rows": {"rows": make_rows(NUM_ROWS + 1)},
    "length": {"max_completion_length": 9},
    "reference": {"ref_seed": 2},
    "padding": {"pad_to_multiple_of": 8},
    "layout": {"prefix_sharing": "off"},
    "lean": {"lean_activations": "off"},
    "dtype": {"dtype": torch.float32},
    "autocast": {"dtype": torch.float32, "bf16": True},
}
NO_CHANGES = {"beta": {"beta": 0.5}, "seed": {"seed": 7}, "learning_rate": {"learning_rate": 1e-4}}


def paths(trainer: DPOTrainer) -> Path:
    from burnish.models.refcache import content_fingerprint

    per_token = trainer.args.ld_alpha is not None
    weights = content_fingerprint(trainer.reference)
    return cache_key(trainer, trainer.train_dataset, weights=weights, per_token=per_token).path


def test_what_changes_the_values_changes_the_key(tmp_path):
    found = {"plain": paths(make_precomputing(tmp_path))}
    for name, options in CHANGES.items():
        found[name] = paths(make_precomputing(tmp_path, **options))
    assert len(set(found.values())) == len(found), found


def test_what_does_not_change_the_values_does_not_change_the_key(tmp_path):
    plain = paths(make_precomputing(tmp_path))
    for name, options in NO_CHANGES.items():
        assert paths(make_precomputing(tmp_path, **options)) == plain, name
    weighted = [{**row, "weight": 2.0, "margin": 0.5} for row in make_rows(NUM_ROWS)]
    assert paths(make_precomputing(tmp_path, rows=weighted)) == plain


def test_threads_change_the_key(tmp_path):
    """They decide the last bits of a matrix product."""
    trainer = make_precomputing(tmp_path)
    plain, before = paths(trainer), torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert paths(trainer) != plain
    finally:
        torch.set_num_threads(before)


def test_a_damaged_file_is_told_and_computed_again(tmp_path, cache):
    first = step_gradients(make_precomputing(tmp_path / "first", dtype=torch.float32))
    (file,) = cache.iterdir()
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    second = step_gradients(make_precomputing(tmp_path / "second", dtype=torch.float32))
    (event,) = events_of(tmp_path / "second", "damaged_reference_cache")
    assert event["path"] == str(file)
    assert "SHA-256" in event["problem"]
    assert file.read_bytes() == sound
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_cache_that_cannot_be_written_is_told(tmp_path, cache):
    cache.parent.mkdir()
    cache.write_text("in the way")
    trainer = make_precomputing(tmp_path / "run")
    trainer.train()
    (event,) = events_of(tmp_path / "run", "reference_not_kept")
    assert event["message"].startswith("the reference's log-probs of train are not kept for another run")
    assert trainer.state.global_step == 4


def test_evaluation_rows_that_are_training_rows_are_scored_once(tmp_path, cache):
    trainer = make_precomputing(tmp_path / "run")
    trainer.eval_dataset = trainer._prepare_eval(make_rows(NUM_ROWS))
    trainer.train()
    told = events_of(tmp_path / "run", "reference")
    assert [(event["data_set"], event["computed"]) for event in told] == [("train", True), ("eval", False)]
    assert len(list(cache.iterdir())) == 1


# What is refused.


def test_rows_that_come_after_training_began(tmp_path):
    trainer = make_precomputing(tmp_path)
    trainer.train()
    trainer.evaluate(trainer.train_dataset)
    with pytest.raises(ValueError, match="have no log-probs of the reference: they were computed before training"):
        trainer.evaluate(make_rows(3))


def test_a_policy_that_was_changed_after_construction(tmp_path):
    trainer = make_precomputing(tmp_path, ref_seed=None)
    with torch.no_grad():
        trainer.model.model.norm.weight.add_(0.1)
    with pytest.raises(ValueError, match="weights were changed after the trainer was made"):
        trainer.train()


def test_log_probs_that_are_not_finite_name_their_rows(tmp_path, cache):
    """A letter that only rows 3 and 5 have, with an embedding of infinity."""
    rows = [{"prompt": "ab", "chosen": "cd", "rejected": "Z" if i in (3, 5) else "ef"} for i in range(7)]
    trainer = make_precomputing(tmp_path, rows=rows)
    with torch.no_grad():
        trainer.reference.model.model.embed_tokens.weight[make_tokenizer().convert_tokens_to_ids("Z")] = float("nan")
    # the embedding is tied to the head: a NaN there would reach every row, so the head gets a sound copy
    head = trainer.reference.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().nan_to_num(0.0))
    with pytest.raises(
        ValueError, match=r"gives 2 rows of train a log-prob that is not finite, first of them rows \[3, 5\]"
    ):
        score_rows(trainer, trainer.train_dataset, per_token=False, name="train")
    with pytest.raises(ValueError, match="not finite"):
        trainer.train()
    assert not cache.exists()


def test_a_collator_that_makes_other_completions(tmp_path):
    trainer = make_precomputing(tmp_path)
    own = trainer.data_collator
    trainer.data_collator = lambda rows: own(rows[:1])
    with pytest.raises(ValueError, match="the data_collator made 2 completions of 4 rows that have 8"):
        trainer.train()


def test_rows_that_cannot_be_scored_before():
    tokens = {"prompt_input_ids": [[5]], "chosen_input_ids": [[6]], "rejected_input_ids": [[7]]}
    check_can_precompute(Dataset.from_dict(tokens), name="train")
    with pytest.raises(ValueError, match="train is a stream"):
        check_can_precompute(Dataset.from_dict(tokens).to_iterable_dataset(), name="train")
    with pytest.raises(ValueError, match="train has ref_chosen_logps already"):
        check_can_precompute(Dataset.from_dict({**tokens, "ref_chosen_logps": [-1.0]}), name="train")


def test_columns_of_one_data_set_only(tmp_path):
    """Training rows are scored, evaluation rows bring their own numbers, of whatever model: refused at construction."""
    rows = [{**row, "ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0} for row in make_rows(3)]
    with pytest.raises(ValueError, match="eval has ref_chosen_logps, ref_rejected_logps already"):
        DPOTrainer(
            make_model(),
            args=DPOConfig(output_dir=str(tmp_path), report_to="none", precompute_ref_log_probs=True),
            train_dataset=make_rows(3),
            eval_dataset=rows,
            processing_class=make_tokenizer(),
        )


# Several processes.


def on_ranks(output: Path, processes: int, **options) -> list[dict]:
    output.mkdir(exist_ok=True)
    script = Path(__file__).with_name("precompute_ranks.py")
    done = launch(processes, script, output, json.dumps({"use_cpu": True, **options}))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((output / f"rank_{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"ld_alpha": 0.5}], ids=["row", "token"])
def test_two_processes_have_the_same_bits_as_one(tmp_path, cache, options):
    """14 rows, 5 at a time: three batches, of which rank 0 scores two."""
    options = {"dtype": "float32", "precompute_ref_batch_size": 5, **options}
    (one,) = on_ranks(tmp_path / "one", 1, **options)
    (file,) = cache.iterdir()
    sound = file.read_bytes()
    read = on_ranks(tmp_path / "read", 2, **options)
    assert [rank["computed"] for rank in read] == [[False], [False]]
    file.unlink()
    two = on_ranks(tmp_path / "two", 2, **options)
    assert [rank["computed"] for rank in two] == [[True], [True]]
    assert file.read_bytes() == sound
    assert all(rank["columns"] == one["columns"] for rank in [*read, *two])


@pytest.mark.slow
def test_what_one_rank_cannot_read_none_reads(tmp_path, cache):
    """Each rank has a folder of its own, as on machines without a shared disk, and the first one writes."""
    options = {"dtype": "float64", "own_cache": True}
    on_ranks(tmp_path / "first", 2, **options)
    assert [path.parts[-3] for path in cache.parent.rglob("*.safetensors")] == ["0"]
    again = on_ranks(tmp_path / "again", 2, **options)
    assert [rank["computed"] for rank in again] == [[True], [True]]


@pytest.mark.slow
def test_more_ranks_than_batches(tmp_path):
    """All rows in one batch: the second rank scores nothing, and has everything."""
    options = {"dtype": "float64", "precompute_ref_batch_size": 14}
    first, second = on_ranks(tmp_path / "two", 2, **options)
    assert first == second
    assert len(first["columns"]["ref_chosen_logps"]) == NUM_ROWS


# Images.


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_vl"])
def test_rows_with_images(tmp_path, family):
    """The reference sees the pixels: other images are another key and other values."""
    from vision_models import make_image, make_processor, make_vision_model

    processor = make_processor(family)
    options = {"report_to": "none", "disable_tqdm": True, "cpu_tuning": "off", "precompute_ref_log_probs": True}

    def trainer_with(seed: int) -> DPOTrainer:
        content = [{"type": "image"}, {"type": "text", "text": "what?"}]
        rows = [
            {
                "images": [make_image(16, 16, seed=seed)],
                "prompt": [{"role": "user", "content": content}],
                "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "red " * (i + 1)}]}],
                "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "no"}]}],
            }
            for i in range(3)
        ]
        return DPOTrainer(
            make_vision_model(family, processor),
            args=DPOConfig(output_dir=str(tmp_path / str(seed)), **options),
            train_dataset=rows,
            processing_class=processor,
        )

    found = []
    for seed in (0, 1):
        trainer = trainer_with(seed)
        train = precompute(trainer).train
        live = trainer.reference.logps(trainer.data_collator(train.to_list()))
        assert train["ref_chosen_logps"][:] == pytest.approx(live[0::2].tolist(), rel=1e-5)
        found.append((paths(trainer), train["ref_chosen_logps"][0]))
    assert found[0][0] != found[1][0]
    assert found[0][1] != pytest.approx(found[1][1], rel=1e-4)
