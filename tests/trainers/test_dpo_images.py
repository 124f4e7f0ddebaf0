"""DPO on rows with images, from the data set to the saved model, for two families of vision-language models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText

from burnish import DPOConfig, DPOTrainer, forward
from burnish.data.errors import DataError
from burnish.data.images import encode_rows
from burnish.data.stream import RankStream
from burnish.models.forward import install_forward
from burnish.models.load import load_policy, load_tokenizer
from burnish.models.reference import FrozenModel
from burnish.runtime.rundir import read_events
from burnish.trainers.precompute import precompute
from burnish.trainers.selfcheck import plain_logps
from conftest import make_model, make_rows, make_tokenizer
from ranks import launch
from vision_models import FAMILIES, make_image, make_processor, make_vision_model

pytestmark = pytest.mark.gallery  # a gallery: make test has one of each kind elsewhere

LOG_2 = math.log(2)
SIZES = [(40, 9), (20, 30), (16, 16), (9, 40), (32, 32), (30, 12)]


def image_rows(num_rows: int = 6) -> list[dict]:
    """Conversations about one image, and about two in every third row; every fourth is of text alone."""
    rows = make_rows(num_rows)
    for index, row in enumerate(rows):
        num_images = 0 if index % 4 == 3 else 2 if index % 3 == 1 else 1
        row["images"] = [make_image(*SIZES[(index + j) % 6], seed=10 * index + j) for j in range(num_images)]
    return rows


def make_trainer(output_dir: Path, family: str, rows, *, dtype=torch.float32, seed: int = 0, **options) -> DPOTrainer:
    processor = make_processor(family)
    settings = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "cpu_tuning": "off",
    }
    model = make_vision_model(family, processor, dtype=dtype, seed=seed)
    args = DPOConfig(**{**settings, **options})
    return DPOTrainer(model, args, train_dataset=rows, processing_class=processor)


def train_losses(trainer: DPOTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "grad_norm" in line]


@pytest.mark.parametrize("family", FAMILIES)
def test_three_steps(tmp_path, family):
    """Log 2 at first, since the reference is a copy; then every part of the model has moved, the vision tower too."""
    trainer = make_trainer(tmp_path / "run", family, image_rows())
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    losses = train_losses(trainer)
    assert losses[0] == pytest.approx(LOG_2, abs=1e-6)
    assert all(math.isfinite(loss) for loss in losses)
    still = [name for name, weight in trainer.model.named_parameters() if torch.equal(before[name], weight)]
    assert still == []
    (event,) = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["kind"] == "first_step"]
    assert event["ok"]
    assert event["max_difference"] < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_does_not_depend_on_its_micro_batches(tmp_path, family):
    """Six rows as one micro-batch and as six: the same losses, in float64."""
    runs = []
    for size, steps in ((6, 1), (1, 6)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "seed": 3}
        trainer = make_trainer(tmp_path / str(size), family, image_rows(), dtype=torch.float64, **options)
        trainer.train()
        runs.append(train_losses(trainer))
    assert runs[0] == pytest.approx(runs[1], abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_through_transformers(tmp_path, family):
    trainer = make_trainer(tmp_path / "run", family, image_rows())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(6)])
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    again = load_policy(tmp_path / "saved").eval()
    install_forward(again)
    trainer.model.eval()
    with torch.no_grad():
        expected = forward(trainer.model, batch).sequence_sum()
        torch.testing.assert_close(forward(again, batch).sequence_sum(), expected, atol=1e-5, rtol=0)
    found = [plain_logps(plain, batch, row) for row in range(12)]
    assert found == pytest.approx(expected.tolist(), abs=1e-4)
    processor = load_tokenizer(str(tmp_path / "saved"))
    again = DPOTrainer(again, trainer.args, train_dataset=image_rows(), processing_class=processor)
    assert again.data_reports["train"].fingerprint == trainer.data_reports["train"].fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_run_is_the_same(tmp_path, family):
    """Also for a family whose weights have other names on the hub than in the model."""
    options = {"dtype": torch.float64, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path, family, image_rows(), **options)
    whole.train()
    resumed = make_trainer(tmp_path, family, image_rows(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert train_losses(resumed) == train_losses(whole)
    for mine, weight in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, weight)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint-3", dtype=torch.float64)
    for mine, weight in zip(plain.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, weight)


def test_a_checkpoint_with_other_names_is_refused(tmp_path):
    """Loading part of it, or nothing, would go on from the weights that the trainer was made with."""
    trainer = make_trainer(tmp_path, "qwen2_vl", image_rows())
    names = trainer.model.state_dict()
    wrong = {name.replace("layers", "blocks"): weight for name, weight in names.items()}
    result = trainer.model.load_state_dict(wrong, strict=False)
    with pytest.raises(ValueError, match=r"does not fit .* missing: model\.language_model\.layers"):
        trainer._issue_warnings_after_load(result)


def test_policy_and_reference_see_the_images(tmp_path):
    """With other pixels and the same tokens, the log-probs of both change."""
    trainer = make_trainer(tmp_path, "qwen2_vl", image_rows())
    batch = trainer.data_collator([trainer.train_dataset[0]])
    other = trainer.data_collator([trainer.train_dataset[0]])
    other.extra[0]["pixel_values"].neg_()
    assert isinstance(trainer.reference, FrozenModel)
    for model in (trainer.model, trainer.reference.model):
        with torch.no_grad():
            first, second = (forward(model, one).sequence_sum() for one in (batch, other))
        assert ((first - second).abs() > 1e-4).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_prepared_rows_have_no_pixels(tmp_path, family):
    """Token ids are final, images stay encoded; the number of image tokens is what the family makes of 40 x 9."""
    trainer = make_trainer(tmp_path, family, image_rows())
    row = trainer.train_dataset[0]
    assert set(row["images"][0]) == {"bytes", "path"}
    image_token = trainer.processing_class.image_token_id
    assert row["prompt_input_ids"].count(image_token) == {"smolvlm": 12, "qwen2_vl": 5}[family]
    assert image_token not in row["chosen_input_ids"] + row["rejected_input_ids"]
    assert trainer.train_dataset[3]["images"] == []


def test_images_stand_where_the_messages_say(tmp_path):
    """Behind the text of a part, and in the second turn; `image` is a column for one."""
    image = make_image(16, 8)
    content = [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": " here?"}]
    row = {**make_rows(1)[0], "prompt": [{"role": "user", "content": content}], "image": image}
    trainer = make_trainer(tmp_path, "qwen2_vl", [row])
    ids = trainer.train_dataset[0]["prompt_input_ids"]
    shown = trainer.tokenizer.decode(ids).replace("<|image_pad|>", "#")
    assert shown == (
        "<|im_start|>user\nLook: <|vision_start|>##<|vision_end|> here?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_images_of_text_rows_stand_at_their_token(tmp_path):
    rows = [{"prompt": "A <|image_pad|>? ", "chosen": "yes", "rejected": "no", "images": [make_image(16, 8)]}]
    trainer = make_trainer(tmp_path, "qwen2_vl", rows)
    ids = trainer.train_dataset[0]["prompt_input_ids"]
    assert trainer.tokenizer.decode(ids) == "A <|image_pad|><|image_pad|>? "


def test_image_features_of_datasets(tmp_path):
    """`datasets.Image` rows, decoded or not, of files or of bytes, prepare to the same tokens."""
    rows = image_rows()
    decoded = Dataset.from_list(rows)
    from_list, from_features = (
        make_trainer(tmp_path / str(index), "smolvlm", given) for index, given in enumerate((rows, decoded))
    )
    reports = [trainer.data_reports["train"] for trainer in (from_list, from_features)]
    assert reports[0].fingerprint == reports[1].fingerprint


def test_a_changed_file_is_prepared_anew(tmp_path):
    """The rows are the same and their cache is not: 16 x 8 pixels take two tokens, 32 x 8 four."""
    path, rows = tmp_path / "a.png", tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({**make_rows(1)[0], "images": [str(path)]}))
    counts = []
    for width in (16, 32, 16):
        make_image(width, 8).save(path)
        trainer = make_trainer(tmp_path / "run", "qwen2_vl", str(rows))
        ids = trainer.train_dataset[0]["prompt_input_ids"]
        counts.append(ids.count(trainer.processing_class.image_token_id))
    assert counts == [2, 4, 2]


def test_other_images_are_another_data_set(tmp_path):
    """The same words and sizes, other pixels: the fingerprint knows, and the prompts are not the same to the lint."""
    rows, others = image_rows(1), image_rows(1)
    others[0]["images"] = [make_image(40, 9, seed=99)]
    first, second = (
        make_trainer(tmp_path / str(index), "smolvlm", given) for index, given in enumerate((rows, others))
    )
    assert first.data_reports["train"].fingerprint != second.data_reports["train"].fingerprint
    both = make_trainer(tmp_path / "both", "smolvlm", rows + others)
    assert both.findings == []
    again = make_trainer(tmp_path / "again", "smolvlm", rows + rows)
    assert [finding.code for finding in again.findings] == ["duplicate_rows"]


def bad(change: dict) -> list[dict]:
    rows = image_rows()
    rows[2].update(change)
    return rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (bad({"images": ["gone.png"]}), r"row 2, column 'images': gone\.png cannot be read"),
        (bad({"images": [{"bytes": b"x", "path": "b.png"}]}), r"row 2, column 'images': b\.png cannot be decoded"),
        (bad({"prompt": [{"role": "user", "content": "a <image>?"}]}), "row 2, column 'prompt': has 2 times <image>"),
        (
            bad({"chosen": [{"role": "assistant", "content": "<image>"}]}),
            "row 2, column 'chosen': has the text <image>",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, words):
    with pytest.raises(DataError, match=words):
        make_trainer(tmp_path, "smolvlm", rows)


def test_bad_rows_are_dropped(tmp_path):
    trainer = make_trainer(tmp_path, "smolvlm", bad({"images": ["gone.png"]}), on_bad_row="drop")
    report = trainer.data_reports["train"]
    assert (report.num_rows, report.num_dropped) == (5, 1)
    kept = trainer.train_dataset
    for row in kept:
        assert len(row["images"]) == len(row["image_digests"])
    trainer.data_collator(list(kept))  # which compares images and digests


def test_images_are_never_cut(tmp_path):
    options = {"truncation_mode": "keep_end", "max_length": 60}
    with pytest.raises(DataError, match="image tokens would be cut"):
        make_trainer(tmp_path, "smolvlm", image_rows(1), **options)


def test_images_need_a_processor(tmp_path):
    args = DPOConfig(output_dir=str(tmp_path), report_to="none")
    with pytest.raises(DataError, match=r"row 0, column 'images': .* processing_class is a tokenizer"):
        DPOTrainer(make_model(), args, train_dataset=image_rows(), processing_class=make_tokenizer())


def test_a_processor_needs_a_vision_language_model(tmp_path):
    args = DPOConfig(output_dir=str(tmp_path), report_to="none")
    with pytest.raises(ValueError, match="LlamaForCausalLM reads no images"):
        DPOTrainer(make_model(), args, train_dataset=make_rows(), processing_class=make_processor("smolvlm"))


def test_rows_of_text_alone(tmp_path):
    """A vision-language model is trained on text as any other."""
    trainer = make_trainer(tmp_path, "smolvlm", make_rows(6))
    trainer.train()
    assert train_losses(trainer)[0] == pytest.approx(LOG_2, abs=1e-6)


def test_token_ids_with_images(tmp_path):
    """A prepared data set may be given again; its images go along."""
    prepared = make_trainer(tmp_path / "first", "qwen2_vl", image_rows()).train_dataset
    trainer = make_trainer(tmp_path / "second", "qwen2_vl", prepared)
    for old, new in zip(prepared, trainer.train_dataset, strict=True):
        assert old == new
    with pytest.raises(DataError, match=r"row 0, column 'prompt_input_ids': has 5 image tokens; its 0 images"):
        make_trainer(tmp_path / "third", "qwen2_vl", prepared.remove_columns("images"))


def test_several_completions_share_the_images(tmp_path):
    """Three graded completions of one prompt with two images: three rows, of which each sees both."""
    row = make_rows(1)[0]
    completions = [[{"role": "assistant", "content": text}] for text in ("a", "bc", "def")]
    images = [make_image(40, 9), make_image(16, 16, seed=1)]
    rows = [{"prompt": row["prompt"], "completions": completions, "scores": [1.0, 3.0, 2.0], "images": images}]
    trainer = make_trainer(tmp_path, "qwen2_vl", rows)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch.prompt_index.tolist() == [0, 0, 0]
    assert len(batch.extra) == 1
    with torch.no_grad():
        scored = forward(trainer.model, batch).sequence_sum()
        found = [plain_logps(trainer.model, batch, index) for index in range(3)]
    assert found == pytest.approx(scored.tolist(), abs=1e-4)


def test_precomputed_log_probs_are_of_the_images(tmp_path):
    """The numbers that the rows get are those of a batch of all rows with their images."""
    trainer = make_trainer(tmp_path, "qwen2_vl", image_rows(), dtype=torch.float64, precompute_ref_log_probs=True)
    batch = trainer.data_collator(list(precompute(trainer).train))
    with torch.no_grad():
        expected = forward(trainer.model, batch).sequence_sum()
    torch.testing.assert_close(batch.ref_logps, expected, atol=1e-9, rtol=0)


def test_evaluation_reads_images(tmp_path):
    trainer = make_trainer(tmp_path, "qwen2_vl", image_rows())
    metrics = trainer.evaluate(Dataset.from_list(image_rows(3)))
    assert metrics["eval_loss"] == pytest.approx(LOG_2, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_equal_one(tmp_path, family):
    """Also where one rank has a row of text and so no gradient for the vision tower, which DDP would wait for."""
    losses = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        output.mkdir()
        script = Path(__file__).with_name("images_two_processes.py")
        done = launch(processes, script, output, family, 2 // processes)
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append(json.loads((output / "losses.json").read_text()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("kind", ["pillow", "features"])
def test_a_stream_of_rows_with_images(tmp_path, kind):
    """Prepared on the way as in a table; then trained on. Images come decoded, or as their features say."""
    family, rows = FAMILIES[0], image_rows()
    wanted = make_trainer(tmp_path / "table", family, rows).train_dataset
    table = Dataset.from_list(encode_rows(rows)).cast_column("images", datasets.List(datasets.Image()))
    source = table.to_iterable_dataset()
    if kind == "pillow":
        source = datasets.IterableDataset.from_generator(lambda: iter(rows))
    trainer = make_trainer(tmp_path / "stream", family, source)
    found = RankStream(trainer.train_dataset).take(6)
    for row, expected in zip(found, wanted, strict=True):
        assert row["prompt_input_ids"] == expected["prompt_input_ids"]
        assert row["image_digests"] == expected["image_digests"]
    trainer.train()
    assert trainer.state.global_step == 3
    assert all(math.isfinite(loss) for loss in train_losses(trainer))
