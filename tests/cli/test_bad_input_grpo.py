"""What cannot be trained on with GRPO: `burnish check` and `burnish train` say so, with a code and without a traceback.

Where it can be known before the model is loaded, it is: the weights are not there.
"""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from burnish.cli.app import app
from burnish.cli.errors import DATA, OK, USAGE
from conftest import make_model, make_tokenizer

RUN_FILE = """
method: grpo
model: model
rewards: number
data: {train: rows.jsonl}
samples: 0
training:
  max_steps: 1
  num_generations: 2
  per_device_train_batch_size: 4
  max_completion_length: 6
  cpu_tuning: "off"
  reward_isolation: none
  report_to: none
  save_strategy: "no"
  output_dir: run
"""
ROWS = [{"prompt": [{"role": "user", "content": f"{n} + 1 ="}], "answer": str(n + 1)} for n in range(6)]
ROW_BY_ROW = "row 0, column 'prompt': is missing"  # rows are read one by one when they are tokenised
IMAGE = [{**row, "image": "x.png"} for row in ROWS]


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Run a command on the run file, on these rows, with these keys set; without the weights unless they are needed."""
    monkeypatch.chdir(tmp_path)

    def invoke(command, rows, keys=(), *, weights=False, tokenizer=None):
        model = make_model()
        if tokenizer is not None:
            model.generation_config.eos_token_id = model.config.eos_token_id = None
        model.save_pretrained("model")
        (tokenizer or make_tokenizer()).save_pretrained("model")
        if not weights and command == "train":
            (tmp_path / "model" / "model.safetensors").unlink()
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "grpo.yaml").write_text(RUN_FILE)
        result = CliRunner().invoke(app, [command, "grpo.yaml", *(word for key in keys for word in ("--set", key))])
        assert "Traceback" not in result.output
        return result.exit_code, " ".join(result.output.split())

    return invoke


@pytest.mark.parametrize(
    ("rows", "keys", "code", "message"),
    [
        ([], [], DATA, "'rows.jsonl' has no rows"),
        (ROWS, ["num_generations=1"], USAGE, "training.num_generations: is 1; allowed: a whole number, 2 or more"),
        (ROWS, ["num_generations=3"], USAGE, "no whole number of groups of num_generations=3. Legal, one of:"),
        (
            ROWS,
            ["steps_per_generation=3", "gradient_accumulation_steps=2"],
            USAGE,
            "no whole number of optimizer steps",
        ),
        (ROWS, ["reward_weights=[1,2]"], USAGE, "has 2 numbers for 1 rewards ['number']"),
        (
            [{**row, "completions": "x"} for row in ROWS],
            [],
            DATA,
            "the column 'completions' has the name of an argument",
        ),
        ([{"prompt": row["prompt"]} for row in ROWS], [], None, "the reward 'number' needs the column 'answer'"),
        ([{"question": "1 + 1", "answer": "2"}], [], DATA, "the data set has no column 'prompt'"),
        ([{**ROWS[0], "prompt": None}, *ROWS], [], DATA, ROW_BY_ROW),
        (IMAGE, [], DATA, "rollouts with images are not built yet"),
        (ROWS, ["max_completion_length=null"], USAGE, "an answer needs a limit"),
        (ROWS, ["max_completion_length=0"], USAGE, "is 0; allowed: a whole number, 1 or more"),
        (ROWS, ["temperature=0"], USAGE, "training.temperature: is 0; allowed: a number, above 0"),
        (ROWS, ["rewards=length"], USAGE, "needs training.reward_options: {length: {max_tokens: ...}}"),
        (ROWS, ["rewards=[]"], USAGE, "rewards: is missing: what scores the answers?"),
        (ROWS, ["advantage=rlo"], USAGE, "training.advantage: is \"rlo\", text, did you mean 'rloo'?"),
        (ROWS, ["kl_estimator=k1"], USAGE, "training.kl_estimator: has no effect while beta is 0.0: set that"),
        (ROWS, ["max_length=100"], USAGE, "is about rows that hold an answer, and these answers are sampled"),
        (
            ROWS,
            ["loss_type=vespo", "importance_sampling_correction=true"],
            USAGE,
            "choose token_truncate or token_mask",
        ),
        (ROWS, ["curriculum_window=[0.5,0.2]"], USAGE, "allowed: two numbers, 0 <= lowest <= highest <= 1"),
        (
            ROWS,
            ["multi_objective_aggregation=normalize_then_sum", "advantage=rloo"],
            USAGE,
            'is the advantage gdpo, and advantage is "rloo"',
        ),
        (ROWS, ["data.streaming=true"], USAGE, "prompts are drawn from all rows"),
        (ROWS, ["data.train=[{path: rows.jsonl}]"], USAGE, "several sources of prompts are not built yet"),
        (ROWS, ["use_vllm=true"], USAGE, "training.use_vllm: is not built yet"),
    ],
    ids=lambda value: ", ".join(value) if value and isinstance(value, list) and isinstance(value[0], str) else "",
)
@pytest.mark.parametrize("command", ["check", "train"])
def test_before_a_model_is_loaded(invoke, command, rows, keys, code, message):
    """A code of None is that of the data in a check, and of an option in a run."""
    found, output = invoke(command, rows, keys, weights=message == ROW_BY_ROW)
    assert found == ((DATA if command == "check" else USAGE) if code is None else code)
    assert message in output


def test_once_the_model_is_there(invoke):
    """What needs the model: its positions, and whether its answers end."""
    long = [{**ROWS[0], "prompt": "x" * 600}, *ROWS]
    code, output = invoke("train", long, weights=True)
    assert code == USAGE
    assert "the model was made for 512" in output
    assert "max_prompt_length=506" in output
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    code, output = invoke("train", ROWS, weights=True, tokenizer=tokenizer)
    assert code == USAGE
    assert "so no answer would end by itself: set tokenizer.eos_token" in output


def test_a_sound_run(invoke):
    """The rows, the arithmetic of the rounds, memory and disk are told; the run itself works."""
    code, output = invoke("check", ROWS)
    assert code == OK
    assert "data.train: rows.jsonl, the first 6 of 6 rows checked: 6 messages" in output
    assert "rounds: 2 prompts × 2 = 4 answers a round, 1 optimizer step a round, 1 step" in output
    assert "memory: about" in output
    assert "tokens at a time in rows of about" in output
    code, output = invoke("train", ROWS, weights=True)
    assert code == OK
    assert "Run directory: run" in output
