"""`burnish trace`: real tiny runs of each method; the numbers are those that the formulas give, and nothing is kept."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rich.console import Console
from run_place import SUMS, save_model, write_rows
from torch.nn.functional import softplus
from typer.testing import CliRunner

from burnish.cli.app import app
from burnish.cli.runfile import load_runfile
from burnish.cli.trace import show, trace_run
from burnish.report.trace import Trace, Wall
from burnish.report.trace_html import trace_page
from conftest import make_model, make_rows

COMMAND = CliRunner()
HOSTILE = "<script>alert(1)</script>\x1b[2J"
SIZES = "per_device_train_batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 1e-2, max_steps: 5"
ONLINE = f"{SIZES}, num_generations: 4, max_completion_length: 5, reward_isolation: none, output_dir: run"
RUN_FILES = {
    "dpo": f"data: {{train: rows.jsonl}}\ntraining: {{{SIZES}, output_dir: run}}\n",
    "reward": f"data: {{train: rows.jsonl}}\ntraining: {{{SIZES}, output_dir: run}}\n",
    "grpo": f"rewards: [number, rewards_of_trace:brief]\ndata: {{train: sums.jsonl}}\ntraining: {{{ONLINE}, beta: 0.1}}\n",
    "ppo": f"rewards: rewards_of_trace:brief\ndata: {{train: sums.jsonl}}\ntraining: {{{ONLINE}}}\n",
}


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A directory with a model, rows, prompts and a run file of each method; the current one."""
    monkeypatch.chdir(tmp_path)
    save_model("model")
    for name, rows in (("rows", make_rows(12)), ("sums", SUMS)):
        write_rows(f"{name}.jsonl", rows)
    (tmp_path / "rewards_of_trace.py").write_text(
        "def brief(completion_ids, **kwargs):\n    return [-float(sum(ids) % 7) for ids in completion_ids]\n"
    )
    for method, text in RUN_FILES.items():
        (tmp_path / f"{method}.yaml").write_text(f"method: {method}\nmodel: model\n{text}")
    return tmp_path


def trace(method: str, *overrides: str) -> Trace:
    return trace_run(load_runfile(f"{method}.yaml", overrides))


def wall(seen: Trace, room: str) -> Wall:
    """The first wall of that method, whatever class has it."""
    return next(each for each in seen.walls if each.room.rpartition(".")[2] == room and " of " not in each.room)


def values(found: Wall) -> dict[str, torch.Tensor]:
    return {field.name: field.value for field in found.fields if isinstance(field.value, torch.Tensor)}


def test_dpo(workplace):
    """Log-probs are those of a plain forward; the loss is -log sigmoid(beta x logratio_diff), divided by the pairs."""
    seen = trace("dpo")
    batch = values(wall(seen, "take_parcels"))
    logps = values(wall(seen, "concatenated_forward"))["logps"]
    model = make_model()
    for row in range(len(logps)):
        prompt = int(batch["prompt_index"][row])
        prompt_ids = batch["prompt_ids"][prompt][batch["prompt_mask"][prompt]]
        ids = batch["completion_ids"][row][batch["completion_mask"][row]]
        out = model(torch.cat([prompt_ids, ids])[None]).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
        expected = out.gather(1, ids[:, None])[:, 0]
        torch.testing.assert_close(logps[row, : len(ids)], expected, rtol=1e-4, atol=1e-4)
    pair = next(each for each in seen.walls if each.room == "pair of DPOTrainer.dpo_loss")
    numbers = values(pair)
    losses = values(wall(seen, "dpo_loss"))["term 'sigmoid', per pair"]
    torch.testing.assert_close(losses, softplus(-0.1 * numbers["logratio_diff"]))
    counts = values(wall(seen, "get_batch_samples"))
    assert counts["['pair']"] == 8
    torch.testing.assert_close(values(wall(seen, "compute_loss"))["value"].float(), losses.sum() / 8)
    assert wall(seen, "backward").fields[0].name == "total"
    assert values(wall(seen, "backward"))["total"] > 0


@pytest.mark.parametrize(
    "options",
    [
        "precompute_ref_log_probs: true, precompute_ref_batch_size: 3",
        "generate_during_eval: true, eval_strategy: steps, eval_steps: 2",
        "lr_scheduler_type: reduce_lr_on_plateau, eval_strategy: steps, eval_steps: 2",
        "eval_on_start: true, load_best_model_at_end: true, eval_strategy: steps, eval_steps: 2, save_steps: 2",
    ],
)
def test_options_of_whole_runs_are_no_fault(workplace, options):
    """What `burnish check` calls sound has a first micro-batch."""
    text = (workplace / "dpo.yaml").read_text().replace("rows.jsonl}", "rows.jsonl, eval_rows: 4}")
    (workplace / "dpo.yaml").write_text(text.replace("output_dir: run}", f"output_dir: run, {options}}}"))
    assert wall(trace("dpo"), "compute_loss")


def test_the_first_row_is_shown_from_file_to_tokens(workplace):
    seen = trace("dpo")
    given, prepared = seen.walls[:2]
    row = int(values(wall(seen, "take_parcels"))["row_id"][0])
    assert {field.name: field.value for field in given.fields}["prompt"] == make_rows(12)[row]["prompt"]
    assert {field.name: field.value for field in prepared.fields}["row_id"] == row
    words = dict(prepared.texts)
    assert words["prompt_input_ids"].endswith("<|im_start|>assistant\n")
    assert words["chosen_input_ids"].startswith(make_rows(12)[row]["chosen"][0]["content"])
    views = [each.view for each in seen.walls if each.view is not None]
    assert [view.row_id for view in views] == [row]
    assert [passage.name for passage in views[0].completions] == ["chosen", "rejected"]


def test_grpo(workplace):
    """Totals become advantages, and the first pass over a fresh round has minus them as its loss."""
    seen = trace("grpo")
    rooms = [each.room.rpartition(".")[2] for each in seen.walls]
    way = ["_prepare_dataset", "draw", "_calculate_rewards", "_rescore", "_credit", "get_batch_samples"]
    way += ["_get_per_token_logps_and_entropies", "_policy_tokens", "_policy_terms", "compute_loss", "backward"]
    assert [room for room in dict.fromkeys(rooms) if room in way] == way
    table = values(wall(seen, "_calculate_rewards"))
    assert table["rewards"].shape == (8, 2)
    groups = table["total()"].view(2, 4)
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    advantages = values(wall(seen, "_credit"))["advantages"]
    torch.testing.assert_close(advantages.view(2, 4), expected, rtol=1e-4, atol=1e-5)
    losses = values(wall(seen, "_policy_terms"))["term 'policy', per token"]
    mask = next(each for each in seen.walls if each.kind == "1 x 2 x RolloutBatch")
    trained = values(mask)["loss_mask"]
    torch.testing.assert_close(losses[trained], -advantages[:4].expand_as(trained)[trained])
    assert len(wall(seen, "draw").texts) == 4
    assert "old_logps" in values(wall(seen, "_policy_tokens"))


def test_ppo(workplace):
    seen = trace("ppo")
    assert {"values", "old_logps"} <= set(values(wall(seen, "_rescore")))
    assert {"advantages", "returns"} <= set(values(wall(seen, "_credit")))
    terms = values(wall(seen, "_compute_loss"))
    assert any("value" in name for name in terms)


def test_reward(workplace):
    """The loss is -log sigmoid of the difference of scores."""
    seen = trace("reward")
    scores = values(wall(seen, "score"))
    losses = values(wall(seen, "reward_loss"))["term 'bradley_terry', per pair"]
    torch.testing.assert_close(losses, softplus(-scores["difference"]))
    assert "values" in "".join(values(wall(seen, "forward")))


def test_nothing_is_kept_and_a_tensor_is_shown_once(workplace):
    before = sorted(path.name for path in workplace.rglob("*"))
    seen = trace("dpo", "precompute_ref_log_probs=true", "save_strategy=steps", "save_steps=1")
    assert sorted(path.name for path in workplace.rglob("*") if "__pycache__" not in str(path)) == before
    shown = [id(f.value) for each in seen.walls for f in each.fields if f.is_number]
    assert len(shown) == len(set(shown))
    assert any("loss_mask" in each.carried or "mask" in each.carried for each in seen.walls)
    assert seen.notes[0].startswith("dpo on model: LlamaForCausalLM")
    assert not [line for line in seen.notes if "run directory" in line]


class Reader(HTMLParser):
    """Whether tags are closed in order, and what the page asks for from elsewhere."""

    VOID = frozenset({"meta"})
    OPTIONAL = frozenset({"li"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.text = [], set(), [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.ids |= {value for name, value in attrs if name == "id"}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("method", ["dpo", pytest.param("grpo", marks=pytest.mark.gallery)])
def test_the_page_is_valid_and_self_contained(workplace, method):
    seen = trace(method)
    page = trace_page(seen)
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert not reader.tags & {"script", "link", "img", "iframe", "object", "form"}
    assert [link for link in reader.links if not link.startswith("#")] == []
    assert {link[1:] for link in reader.links} == reader.ids == {f"wall-{n + 1}" for n in range(len(seen.walls))}
    assert not re.search(r"url\(|@import|https?:", page)
    assert "default-src 'none'" in page
    text = "".join(reader.text)
    assert all(each.room in text and each.kind in text for each in seen.walls)


def test_text_and_page_are_inert(workplace):
    rows = [
        {**row, "chosen": [{"role": "assistant", "content": f"{HOSTILE} {n}"}]} for n, row in enumerate(make_rows(8))
    ]
    write_rows("rows.jsonl", rows)
    seen = trace("dpo")
    screen = io.StringIO()
    show(seen, console=Console(file=screen, width=160))
    page = trace_page(seen)
    assert "<script>alert(1)</script>\\x1b[2J" in screen.getvalue()
    assert "\x1b" not in screen.getvalue() + page
    assert "<script" not in page


def test_the_command(workplace):
    result = COMMAND.invoke(app, ["trace", "dpo.yaml", "--set", "beta=0.2", "--html", "pages/t.html"])
    assert result.exit_code == 0, result.output
    assert "DPOTrainer.dpo_loss" in result.output
    assert "written: pages/t.html" in result.output
    assert (workplace / "pages" / "t.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_bad_rows_are_told_as_check_tells_them(workplace):
    rows = [*make_rows(3), {**make_rows(1)[0], "rejected": make_rows(1)[0]["chosen"]}]
    write_rows("rows.jsonl", rows)
    checked, traced = (COMMAND.invoke(app, [command, "dpo.yaml"]) for command in ("check", "trace"))
    assert checked.exit_code == traced.exit_code == 3
    problem = "row 3, column 'rejected': is the same as chosen"
    assert problem in checked.output
    assert problem in traced.output
