"""What a model is loaded with also says where its tokenizer comes from, and in which numbers it is."""

from __future__ import annotations

import pytest
import torch

from burnish import DPOConfig, DPOTrainer
from burnish.models.load import load_end_token_ids, load_policy, load_tokenizer, resolve_model
from burnish.models.value import load_value_model
from conftest import make_model, make_rows, make_tokenizer

CHATML_WITH_DOTS = "{% for m in messages %}.{{ m['content'] }}{% endfor %}"


@pytest.fixture
def hub_cache(tmp_path):
    """A cache of the hub with two revisions of a model, whose tokenizers have other chat templates."""
    repository = tmp_path / "models--org--tiny"
    for seed, (name, digit, template) in enumerate((("main", "a", None), ("v2", "b", CHATML_WITH_DOTS))):
        snapshot = repository / "snapshots" / (digit * 40)
        make_model(seed).save_pretrained(snapshot)
        make_tokenizer(template).save_pretrained(snapshot)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(digit * 40)
    return tmp_path


def test_the_tokenizer_is_of_the_revision_of_the_model(hub_cache):
    options = {"cache_dir": str(hub_cache), "revision": "v2"}
    assert load_tokenizer("org/tiny", init_kwargs=options).chat_template == CHATML_WITH_DOTS
    assert load_tokenizer("org/tiny", init_kwargs={"cache_dir": str(hub_cache)}).chat_template is None

    args = DPOConfig(output_dir=str(hub_cache / "run"), model_init_kwargs=options, report_to="none")
    trainer = DPOTrainer("org/tiny", args, train_dataset=make_rows(2))
    assert trainer.tokenizer.chat_template == CHATML_WITH_DOTS


def test_an_adapter_remembers_the_revision_of_its_model(hub_cache):
    """PEFT loads the main revision for an adapter that does not say which one it was trained on."""
    of_cache = {"cache_dir": str(hub_cache)}
    args = DPOConfig(
        output_dir=str(hub_cache / "run"), model_init_kwargs={**of_cache, "revision": "v2"}, report_to="none"
    )
    peft_config = {"type": "lora", "r": 2, "target_modules": ["q_proj"]}
    DPOTrainer("org/tiny", args, train_dataset=make_rows(2), peft_config=peft_config).save_model(str(hub_cache / "ad"))
    (hub_cache / "ad" / "tokenizer_config.json").unlink()

    base = load_policy(hub_cache / "ad", init_kwargs=of_cache).get_base_model()
    assert torch.equal(base.model.embed_tokens.weight, make_model(1).model.embed_tokens.weight)
    assert load_tokenizer(hub_cache / "ad", init_kwargs=of_cache).chat_template == CHATML_WITH_DOTS
    assert load_end_token_ids(str(hub_cache / "ad"), make_tokenizer(), init_kwargs=of_cache)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_the_former_name_of_dtype_is_obeyed(tmp_path, dtype):
    make_model(dtype=torch.float16).save_pretrained(tmp_path)
    assert load_policy(tmp_path).dtype == torch.float32
    assert load_policy(tmp_path, init_kwargs={"torch_dtype": dtype}).dtype == torch.bfloat16
    critic = load_value_model(tmp_path, tokenizer=make_tokenizer(), init_kwargs={"torch_dtype": dtype})
    assert critic.dtype == torch.bfloat16


def test_a_dtype_that_is_none_is_named(tmp_path):
    make_model().save_pretrained(tmp_path)
    assert load_policy(tmp_path, init_kwargs={"dtype": "torch.bfloat16"}).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype='bloat16' is no dtype of torch; allowed: float32, bfloat16"):
        load_policy(tmp_path, init_kwargs={"dtype": "bloat16"})


def test_a_path_to_nothing_is_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_model().save_pretrained(tmp_path / "model")
    assert resolve_model("~/model") == str(tmp_path / "model")
    for load in (load_policy, load_tokenizer):
        with pytest.raises(FileNotFoundError, match=f"model '~/nothing': there is no directory {tmp_path / 'nothing'}"):
            load("~/nothing")


def test_a_model_without_a_tokenizer_says_so(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"no tokenizer lies in {tmp_path}: pass processing_class"):
        load_tokenizer(tmp_path)
