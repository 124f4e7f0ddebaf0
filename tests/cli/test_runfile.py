from __future__ import annotations

import json

import pytest

from burnish.cli.runfile import RunFileError, load_runfile

GOOD = """\
model: smollm2-135m
data:
  train: recipe:spoken-train
  eval: recipe:spoken-heldout
training:
  learning_rate: 1e-6
  max_steps: 1e2
"""

TEN_MISTAKES = """\
model: smollm2-135
data:
  train: recipe:spoken-tran
  eval: recipe:spoken-heldout
  eval_rows: 20
sample: 3
training:
  bta: 0.1
  learning_rate: ten
  lr_scheduler_type: cosin
  loss_type: [sigmod, sft]
  padding_free: true
  auto_find_batch_size: true
  seed: 1
  seed: 2
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems(path, *overrides):
    with pytest.raises(RunFileError) as caught:
        load_runfile(path, list(overrides))
    return list(caught.value.problems)


def only_problem(path, *overrides):
    (problem,) = problems(path, *overrides)
    return problem


def test_a_good_file_with_its_defaults(write):
    runfile = load_runfile(write(GOOD))
    assert (runfile.method, runfile.samples, runfile.max_new_tokens) == ("dpo", 3, 80)
    assert runfile.training == {"learning_rate": 1e-6, "max_steps": 100}
    assert isinstance(runfile.training["max_steps"], int)


def test_ten_planted_mistakes_are_ten_problems(write):
    expected = [
        ("line 1, model:", "did you mean 'smollm2-135m'"),
        ("line 3, data.train:", "did you mean 'spoken-train'"),
        ("line 5, data.eval_rows:", "contradicts data.eval"),
        ("line 6, sample:", "did you mean 'samples'"),
        ("line 8, training.bta:", "did you mean 'beta'"),
        ("line 9, training.learning_rate:", 'is "ten", text. Allowed: a number'),
        ("line 10, training.lr_scheduler_type:", "did you mean 'cosine'"),
        ("line 11, training.loss_type.0:", "did you mean 'sigmoid'"),
        ("line 12, training.padding_free:", "not built yet"),
        ("line 13, training.auto_find_batch_size:", "per_device_train_batch_size"),
        ("line 14, training.seed:", "stands twice, again in line 15"),
    ]
    found = problems(write(TEN_MISTAKES))
    assert len(found) == len(expected)
    for problem, (start, part) in zip(found, expected, strict=True):
        assert problem.startswith(start)
        assert part in problem


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("learning_rate=-1", "0 or more"),
        ("beta=0", "above 0"),
        ("beta=.nan", "a finite number"),
        ("max_length=0", "2 or more, or null"),
        ("max_length=1.5", "a whole number"),
        ("max_steps=0", "or -1"),
        ("logging_steps=2.5", "a share of the run"),
        ("bf16=yes", "true or false"),
        ("eval_strategy=3", '"no", "steps", "epoch"'),
        ("loss_type=my_losses:", "module:function"),
        ("loss_type=no_such_module_here:margin", "no module 'no_such_module_here'"),
        ("loss_type=[]", "is empty"),
        ("judge=mine", "a function as module:function"),
        ("num_eval_samples=0", "1 or more"),
        ("loss_weights=[1, x]", "training.loss_weights.1"),
        ("loss_weights=[1, 2]", "2 numbers for 1 losses"),
        ("loss_type=exo_pair", "loss_type: has exo_pair, which is infinite without smoothing: set label_smoothing"),
        ("loss_kwargs={tau: 1}", "read by none of sigmoid"),
        ("data.train=rows.jsonl", "there is no file 'rows.jsonl'"),
        ("data.train=./rows.txt", "must end in"),
        ("data.eval={a: recipe:x}", "data.eval.a: there is no recipe"),
        ("model=./nowhere", "there is no directory"),
        ("model=nowhere.gguf", "there is no file"),
        ("model=", "is null"),
        ("samples=-1", "0 or more"),
        ("method=dpoo", "did you mean 'dpo'"),
        ("foo=1", "no known key"),
        ("sed=1", "did you mean 'training.seed'"),
        ("data.beta=1", "it is 'training.beta'"),
        ("beta.x=1", "a mapping. Allowed: a number"),
        ("samples.x=1", "a mapping. Allowed"),
        ("model.x=1", "model is no mapping in the file"),
        ("beta", "--set key=value"),
        ("beta=[1", "line 1"),
        ("fp16=true", None),
        ("resume_from_checkpoint=x", "burnish resume"),
        ("load_best_model_at_end=true", "checkpoints at the same steps"),
        ("lr_scheduler_type=reduce_lr_on_plateau", "set eval_strategy"),
        ("dataloader_prefetch_factor=2", "the loader is Burnish's own"),
    ],
)
def test_each_mistake_is_one_problem(write, override, part):
    path = write(GOOD)
    if part is None:
        assert load_runfile(path, [override]).training["fp16"] is True
        return
    problem = only_problem(path, override)
    assert problem.startswith("--set, ")
    assert part in problem


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["fp16=true", "bf16=true"], "at most one"),
        (["data.eval=null", "eval_strategy=steps"], "needs held-out rows"),
        (["data.eval=null", "eval_on_start=true"], "needs held-out rows"),
        (["data.eval=null", "generate_during_eval=true"], "answers held-out prompts"),
        (["judge=json:loads"], "set generate_during_eval to true"),
        (["judge=no_such_module_here:f", "generate_during_eval=true"], "no module 'no_such_module_here'"),
        (["loss_type=ipo", "label_smoothing=0.1"], "ipo does not read it"),
        (["beta=0.2", "training.beta=0.3"], "set twice"),
        (["push_to_hub=true", "hub_token=<redacted>"], "set it again"),
    ],
)
def test_keys_that_contradict_each_other(write, overrides, part):
    assert part in only_problem(write(GOOD), *overrides)


def test_best_model_needs_saves_at_evaluations(write):
    settings = ["load_best_model_at_end=true", "eval_strategy=steps", "save_strategy=steps", "eval_steps=10"]
    assert load_runfile(write(GOOD), [*settings, "save_steps=20"])
    assert "a multiple of eval_steps" in only_problem(write(GOOD), *settings, "save_steps=25")


def test_trl_options_that_are_off_are_accepted(write):
    assert load_runfile(write(GOOD), ["padding_free=false"]).training["padding_free"] is False


def test_a_loss_of_ones_own(write, tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert load_runfile(write(GOOD), ["loss_type=my_losses:margin", "label_smoothing=0.1"])


def test_a_misspelt_file_is_found_beside_it(write, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert "did you mean" in only_problem(write(GOOD), f"data.train={tmp_path / 'row.jsonl'}")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", ["model", "data"]),
        ("- 1\n", ["the file"]),
        ("data: 3\ntraining: 4\nmodel: a\n", ["data", "training"]),
        ("model: a\ndata: {}\n", ["data.train"]),
        ("1: 2\nmodel: a\ndata: {train: b}\n", ["1"]),
        ("a: [1", ["this is no YAML"]),
    ],
)
def test_files_of_another_shape(write, text, keys):
    found = problems(write(text))
    assert len(found) == len(keys)
    assert all(any(key in problem for problem in found) for key in keys)


def test_training_with_nothing_under_it_is_empty(write):
    assert load_runfile(write("model: a\ndata: {train: b}\ntraining:\n")).training == {}


def test_overrides_make_missing_mappings(write):
    runfile = load_runfile(write("model: a\n"), ["data.train=b", "loss_kwargs.beta=0.1"])
    assert (runfile.train, runfile.training) == ("b", {"loss_kwargs": {"beta": 0.1}})


def test_missing_files_and_recipes(tmp_path):
    assert "burnish init" in only_problem(tmp_path / "none.yaml")
    assert "did you mean 'dpo'" in only_problem("recipe:dpoo")


def test_the_packaged_recipe_is_sound():
    assert load_runfile("recipe:dpo").method == "dpo"


def test_as_dict_is_the_same_run_from_anywhere(write, tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    path = write(GOOD)
    monkeypatch.chdir(tmp_path)
    first = load_runfile(path, ["data.train=rows.jsonl", "hub_token=<redacted>"]).as_dict()
    assert first["data"]["train"] == str(rows)
    assert "hub_token" not in first["training"]
    monkeypatch.chdir("/")
    assert load_runfile(write(json.dumps(first))).as_dict() == first


MIXED = """\
model: smollm2-135m
data:
  train:
    - {path: recipe:spoken-train, weight: 3}
    - {path: recipe:spoken-heldout, name: rest, weight: 1}
"""


def test_several_sources_of_a_list(write):
    """The names and weights go where Python takes them, so that run.yaml says the same."""
    runfile = load_runfile(write(MIXED))
    assert runfile.train == {"spoken-train": "recipe:spoken-train", "rest": "recipe:spoken-heldout"}
    assert runfile.training == {"dataset_weights": {"spoken-train": 3, "rest": 1}}
    assert load_runfile(write(json.dumps(runfile.as_dict()))).as_dict() == runfile.as_dict()


@pytest.mark.parametrize(
    ("train", "part"),
    [
        ("{a: recipe:spoken-trai}", "data.train.a: there is no recipe data set"),
        ("[{path: recipe:spoken-trai}]", "data.train.0.path: there is no recipe data set"),
        ("[{path: recipe:spoken-train, wieght: 1}]", "data.train.0.wieght: is no known key, did you mean 'weight'"),
        ("[{path: recipe:spoken-train, weight: 0}]", "data.train.0.weight: is 0; allowed: a number, above 0"),
        ("[{name: a}]", "data.train.0.path: is missing"),
        ("[{path: recipe:spoken-train}, {path: recipe:spoken-train}]", "two sources called 'spoken-train'"),
        ("[{path: recipe:spoken-train, weight: 1}, {path: a/b, name: c}]", "but none for c"),
        ("[]", "data.train"),
        ("{}", "data.train"),
        ("3", "data.train"),
    ],
)
def test_sources_that_are_wrong(write, train, part):
    problem = only_problem(write("model: a\n"), f"data.train={train}")
    assert part in problem


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["dataset_weights={a: 1}"], "data.train is one source"),
        (["data.train={a: recipe:spoken-train}", "dataset_weights={b: 1}"], "'b' is no source"),
        (["data.train=[{path: recipe:spoken-train, weight: 1}]", "dataset_weights=[1]"], "contradicts the weights"),
        (["shuffle_buffer_size=100"], "data.streaming is false"),
        (["data.streaming=true", "shuffle_buffer_size=1"], "2 or more"),
        (["data.streaming=true", "max_steps=-1"], "needs training.max_steps"),
        (["data.streaming=true", "data.eval=null", "data.eval_rows=3"], "does not go with data.eval_rows"),
        (["data.streaming=true", "data.train={a: recipe:spoken-train}"], "needs one source"),
        (["data.streaming=true", "dataloader_num_workers=2"], "does not go with training.dataloader_num_workers"),
    ],
)
def test_sources_and_options_that_contradict_each_other(write, overrides, part):
    assert part in only_problem(write(GOOD), *overrides)


def test_a_stream(write):
    runfile = load_runfile(write(GOOD), ["data.streaming=true", "shuffle_buffer_size=100"])
    assert runfile.streaming
    assert runfile.as_dict()["data"]["streaming"] is True
