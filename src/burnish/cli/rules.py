"""The rules of every method: pairs of keys that contradict each other, and keys that need others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from burnish.cli import ppo_rules
from burnish.cli.reference_rules import reference_problems
from burnish.cli.rollout_rules import rollout_problems
from burnish.cli.rulebook import RULES, Values, option_values, path_of, rule
from burnish.cli.sources import train_sources, unnamed_problem
from burnish.cli.validate import Problem, is_function_name, training_schema
from burnish.data.shares import read_weights
from burnish.models.footprint import BYTES_OF
from burnish.registry import closest

__all__ = ["ppo_rules", "rule_problems"]  # the former's rules register themselves

HELD_OUT = ("data.eval", "data.eval_rows")
REDACTED = "<redacted>"  # what run.yaml has in place of a secret
NEEDS_EVAL_SCHEDULERS = ("reduce_lr_on_plateau", "greedy")


def rule_problems(document: Mapping[str, Any], broken: set[str]) -> Iterator[Problem]:
    """The problems of all rules; `broken` are keys that are wrong by themselves."""
    schema, values = training_schema(document), option_values(document)
    wrong = broken | {".".join(name.split(".")[:2]) for name in broken if name.startswith("data.")}  # and what is in it
    for each in RULES:
        if set(each.keys) <= values.keys() and not wrong & set(each.keys) and (message := each.check(values)):
            yield Problem(path_of(each.keys[0]), message)
    yield from rollout_problems(values, schema, broken)
    yield from reference_problems(values, schema, broken)
    if not broken & {"loss_type", "loss_kwargs"}:
        yield from _unread(values, schema, broken)


def _has_eval(values: Values) -> bool:
    return values["data.eval"] is not None or values["data.eval_rows"] is not None


@rule("data.eval_rows", "data.eval")
def _one_held_out_set(values: Values) -> str | None:
    if values["data.eval"] is not None and values["data.eval_rows"] is not None:
        return "contradicts data.eval, which names the held-out rows: set one of the two to null"
    return None


@rule("data.train")
def _sources_have_names_and_weights(values: Values) -> str | None:
    return unnamed_problem(values["data.train"])


@rule("dataset_weights", "data.train")
def _weights_are_of_several_sources(values: Values) -> str | None:
    weights, sources = values["dataset_weights"], values["data.train"]
    if weights is None or unnamed_problem(sources):
        return None
    named, own = train_sources(sources)
    if not isinstance(named, Mapping):
        return "is set, but data.train is one source: give several, or leave it at null"
    if own is not None:
        return "contradicts the weights in data.train: leave it at null"
    try:
        read_weights(weights, list(named))
    except ValueError as error:
        return str(error)
    return None


@rule("data.streaming", "data.train", "data.eval_rows", "max_steps", "dataloader_num_workers", "dataloader_drop_last")
def _what_a_stream_needs(values: Values) -> str | None:
    if not values["data.streaming"]:
        return None
    if not isinstance(values["data.train"], str):
        return "needs one source in data.train"
    if values["data.eval_rows"] is not None:
        return "does not go with data.eval_rows, since nobody knows the rows of a stream: name them in data.eval"
    if values["max_steps"] < 1:
        return "needs training.max_steps, since nobody knows the length of a stream"
    for name in ("dataloader_num_workers", "dataloader_drop_last"):
        if values[name]:
            return f"does not go with training.{name}: a stream is read in the training process"
    return None


@rule("shuffle_buffer_size", "data.streaming")
def _a_buffer_needs_a_stream(values: Values) -> str | None:
    if values["shuffle_buffer_size"] is not None and not values["data.streaming"]:
        return "is set, but data.streaming is false: the rows are shuffled as a whole"
    return None


@rule("loss_weights", "loss_type")
def _one_weight_for_each_loss(values: Values) -> str | None:
    losses = values["loss_type"] if isinstance(values["loss_type"], list) else [values["loss_type"]]
    weights = values["loss_weights"]
    if weights is not None and len(weights) != len(losses):
        return f"has {len(weights)} numbers for {len(losses)} losses {losses}: give one for each"
    return None


@rule("loss_type", "label_smoothing")
def _exo_needs_smoothing(values: Values) -> str | None:
    losses = values["loss_type"] if isinstance(values["loss_type"], list) else [values["loss_type"]]
    if "exo_pair" not in losses or values["label_smoothing"] > 0:
        return None
    return "has exo_pair, which is infinite without smoothing: set label_smoothing, to 1e-3 as in its paper"


@rule("eval_strategy", *HELD_OUT)
def _evaluation_needs_rows(values: Values) -> str | None:
    if values["eval_strategy"] != "no" and not _has_eval(values):
        return f'is "{values["eval_strategy"]}", which needs held-out rows: set data.eval or data.eval_rows'
    return None


@rule("eval_on_start", *HELD_OUT)
def _first_evaluation_needs_rows(values: Values) -> str | None:
    if values["eval_on_start"] and not _has_eval(values):
        return "needs held-out rows: set data.eval or data.eval_rows"
    return None


@rule("generate_during_eval", *HELD_OUT)
def _answers_need_prompts(values: Values) -> str | None:
    if values["generate_during_eval"] and not _has_eval(values):
        return "answers held-out prompts: set data.eval or data.eval_rows"
    return None


@rule("judge", "generate_during_eval")
def _judging_needs_answers(values: Values) -> str | None:
    if values["judge"] is not None and not values["generate_during_eval"]:
        return "would have no effect: set generate_during_eval to true"
    return None


@rule("load_best_model_at_end", *HELD_OUT)
def _best_needs_rows(values: Values) -> str | None:
    if values["load_best_model_at_end"] and not _has_eval(values):
        return "needs held-out rows to compare checkpoints: set data.eval or data.eval_rows"
    return None


@rule("load_best_model_at_end", "eval_strategy", "save_strategy")
def _best_needs_matching_strategies(values: Values) -> str | None:
    evaluates, saves = values["eval_strategy"], values["save_strategy"]
    if not values["load_best_model_at_end"] or (evaluates != "no" and saves in ("best", evaluates)):
        return None
    return (
        f'needs evaluation, and checkpoints at the same steps: eval_strategy is "{evaluates}", '
        f'save_strategy "{saves}"; set both to "steps" or both to "epoch"'
    )


@rule("save_steps", "eval_steps", "logging_steps", "load_best_model_at_end", "eval_strategy", "save_strategy")
def _saves_at_evaluations(values: Values) -> str | None:
    both_in_steps = values["eval_strategy"] == values["save_strategy"] == "steps"
    if not (values["load_best_model_at_end"] and both_in_steps):
        return None
    every, saves = values["eval_steps"] or values["logging_steps"], values["save_steps"]
    if (every < 1) != (saves < 1):
        return f"is {saves} and eval_steps {every}: with load_best_model_at_end both are steps, or both shares below 1"
    ratio = saves / every
    if abs(ratio - round(ratio)) > 1e-9 or round(ratio) < 1:
        return f"is {saves}; with load_best_model_at_end it must be a multiple of eval_steps, {every}"
    return None


def _no_adapter(switch: str) -> None:
    @rule(switch, "peft")
    def check(values: Values) -> str | None:
        if values[switch] not in (False, None) and values["peft"] is not None:
            return (
                "mixes the policy's weights into the reference's, and with peft they are one model: set one of the two"
            )
        return None


for _switch in ("sync_ref_model", "ref_model_bema"):
    _no_adapter(_switch)


@rule("model_init_kwargs")
def _dtype_is_known(values: Values) -> str | None:
    given = values["model_init_kwargs"]
    dtype = given.get("dtype", given.get("torch_dtype")) if isinstance(given, Mapping) else None
    if not isinstance(dtype, str) or dtype.removeprefix("torch.") in (*BYTES_OF, "auto"):
        return None
    return f'has the dtype "{dtype}"{closest(dtype, BYTES_OF) or ";"} known: {", ".join(BYTES_OF)}, auto'


@rule("fp16", "bf16")
def _one_precision(values: Values) -> str | None:
    return "contradicts bf16: at most one of them is true" if values["fp16"] and values["bf16"] else None


@rule("fp16_full_eval", "bf16_full_eval")
def _one_evaluation_precision(values: Values) -> str | None:
    both = values["fp16_full_eval"] and values["bf16_full_eval"]
    return "contradicts bf16_full_eval: at most one of them is true" if both else None


@rule("lr_scheduler_type", "eval_strategy")
def _scheduler_needs_evaluation(values: Values) -> str | None:
    if values["lr_scheduler_type"] in NEEDS_EVAL_SCHEDULERS and values["eval_strategy"] == "no":
        return f'is "{values["lr_scheduler_type"]}", which follows the held-out loss: set eval_strategy'
    return None


@rule("resume_from_checkpoint")
def _resuming_is_a_command(values: Values) -> str | None:
    if values["resume_from_checkpoint"] is not None:
        return "is not read from a run file: use `burnish resume RUN_DIR`"
    return None


@rule("hub_token", "push_to_hub")
def _secrets_are_not_in_run_yaml(values: Values) -> str | None:
    if values["hub_token"] == REDACTED and values["push_to_hub"]:
        return "was left out when run.yaml was written: set it again, or to null to use the stored login"
    return None


@rule("max_steps")
def _steps_are_positive(values: Values) -> str | None:
    steps = values["max_steps"]
    return f"is {steps}; allowed: 1 or more, or -1 to train num_train_epochs" if steps == 0 or steps < -1 else None


def _whole(name: str) -> None:
    @rule(name)
    def check(values: Values) -> str | None:
        value = values[name]
        if value is not None and value > 1 and value != int(value):
            return f"is {value}; allowed: a whole number of steps, or a share of the run below 1"
        return None


for _name in ("logging_steps", "eval_steps", "save_steps", "warmup_steps"):
    _whole(_name)


def _unread(values: Values, schema: Mapping[str, Any], broken: set[str]) -> Iterator[Problem]:
    """Hyper-parameters that no chosen loss reads: an unread option is a lie."""
    table: Mapping[str, list[str]] = schema["x-losses"]
    if not table:
        return  # a trainer that defines its loss itself
    losses = values["loss_type"] if isinstance(values["loss_type"], list) else [values["loss_type"]]
    if any(is_function_name(loss) for loss in losses):
        return  # what a user's function reads is known once it is imported
    read = {name for loss in losses for name in table[loss]}
    for name in {name for names in table.values() for name in names} - read - broken:
        default = schema["properties"].get(name, {}).get("default")
        if values.get(name, default) != default:
            readers = sorted(loss for loss, names in table.items() if name in names)
            yield Problem(
                ("training", name),
                f"is {values[name]}, but {', '.join(losses)} does not read it: leave it at {default}, "
                f"or choose a loss that does: {', '.join(readers)}",
            )
    for name in set(values["loss_kwargs"] or {}) - read:
        known = f"they read: {', '.join(sorted(read)) or 'nothing'}"
        near = closest(str(name), read)
        yield Problem(("training", "loss_kwargs", name), f"is read by none of {', '.join(losses)}{near or ';'} {known}")
