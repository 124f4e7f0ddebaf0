"""What both sides of the comparison with TRL build for themselves: the same model, tokenizer and rows, by formula.

Imports nothing of Burnish, TRL or pytest, so that it runs in either environment. Weights are a sine of their place,
computed and kept in float64, so that no random number generator has to agree.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BETA = 0.3
LOSSES = (
    "sigmoid", "ipo", "hinge", "aot", "sft", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
OPTIONS = {  # of a case: its loss, and what is set away from the defaults
    **{loss: {"loss_type": [loss]} for loss in LOSSES},
    "exo_pair": {"loss_type": ["exo_pair"], "label_smoothing": 0.1},
    "robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "aot_smoothed": {"loss_type": ["aot"], "label_smoothing": 0.2},
    "sigmoid_and_sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.3]},
    "ld": {"loss_type": ["sigmoid"], "ld_alpha": 0.4},
    "forward_kl": {"loss_type": ["sigmoid"], "f_divergence_type": "forward_kl"},
    "js_divergence": {"loss_type": ["hinge"], "f_divergence_type": "js_divergence"},
    "alpha_divergence": {
        "loss_type": ["sigmoid"], "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3
    },
    "weighted": {"loss_type": ["sigmoid"], "use_weighting": True},
}  # fmt: skip
AS_IN_1_16 = (
    "sigmoid", "hinge", "ipo", "nca_pair", "sppo_hard", "sft", "bco_pair", "aot", "aot_pair", "apo_zero", "apo_down",
    "discopop",
)  # fmt: skip
OPTIONS_0_25 = {  # of a case of 0.25: its trainer there, and what is set away from the defaults
    **{loss: ("dpo", {"loss_type": [loss]}) for loss in AS_IN_1_16},
    "smoothed": ("dpo", {"loss_type": ["sigmoid"], "label_smoothing": 0.2}),
    "exo_pair": ("dpo", {"loss_type": ["exo_pair"], "label_smoothing": 0.1}),
    "robust": ("dpo", {"loss_type": ["robust"], "label_smoothing": 0.1}),
    "aot_smoothed": ("dpo", {"loss_type": ["aot"], "label_smoothing": 0.2}),
    "sigmoid_and_sft": ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.3]}),
    "rpo": ("dpo", {"rpo_alpha": 0.5}),
    "weighted": ("dpo", {"use_weighting": True}),
    "reference_free": ("dpo", {"reference_free": True}),
    "js_divergence": ("dpo", {"f_divergence_type": "js_divergence"}),
    "alpha_divergence": ("dpo", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}),
    "ld": ("dpo", {"ld_alpha": 0.4}),
    "cpo": ("cpo", {"loss_type": "sigmoid", "cpo_alpha": 1.0}),
    "simpo": ("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5}),
    "orpo": ("orpo", {}),
}
ROWS = [
    {"prompt": "Q: what is the sky?\nA:", "chosen": " blue on most days", "rejected": " no"},
    {"prompt": "Name a stone.\n", "chosen": "Granite.", "rejected": "I would rather not name any stone today."},
    {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"},
    {"prompt": "Rain or sun, and why?", "chosen": " Rain, for the garden.", "rejected": " Sun sun sun"},
    {"prompt": "Capital of Peru:", "chosen": " Lima", "rejected": " Rome"},
    {"prompt": "A colour? ", "chosen": "green", "rejected": "seven"},
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and three special tokens; no merges, so no token crosses the end of a prompt."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def make_model(phase: float) -> LlamaForCausalLM:
    """A Llama of two layers whose i-th parameter is 0.25 sin(12.9898 j + 78.233 (i + 1) + phase) at place j."""
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            place = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = 0.25 * torch.sin(12.9898 * place + 78.233 * (index + 1) + phase)
            is_norm = parameter.dim() == 1
            parameter.copy_((wave + float(is_norm)).reshape(parameter.shape))
    return model


def gradient_norm(model: LlamaForCausalLM) -> float:
    """Length of the whole gradient."""
    return float(sum(p.grad.double().square().sum() for p in model.parameters()).sqrt())
