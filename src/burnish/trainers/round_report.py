"""What is told of a round: its metrics, alarms, and the answers with their rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from burnish.generation.native import NativeGenerator
from burnish.rollout.alarms import alarms
from burnish.rollout.collect import Round, make_answers
from burnish.rollout.statistics import round_statistics
from burnish.trainers.round_table import EXTRA, REWARD, round_table

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.trainers.online import OnlineTrainer
    from burnish.types import RolloutBatch

NUM_SHOWN = 4


class RoundReport:
    """Tells each kind of alarm once, and counts the rest; keeps the latest answers for `log_completions`.

    Attributes:
        latest: this rank's answers of the latest round, a row each.
        console: where the table of answers is shown; the terminal if None.
    """

    def __init__(self) -> None:
        self.latest: list[dict[str, Any]] = []
        self.console: Console | None = None
        self._told: set[str] = set()
        self._title = ""  # of the latest round; empty once its answers were shown

    def tell(self, trainer: OnlineTrainer, found: Round) -> None:
        """Metrics to the buffer, alarms to the log, answers to the run directory."""
        step = trainer.state.global_step + 1
        numbers = round_numbers(found, solved_reward=trainer.args.solved_reward)
        numbers["curriculum/left_out"] = float(trainer.prompt_stream.num_left_out)
        trainer.metric_buffer.add({name: trainer.of_round(value) for name, value in numbers.items()})
        self._tell_engine(trainer)
        for code, message in alarms(numbers, learns_from_rewards=trainer.learns_from_rewards).items():
            trainer.tell("alarm", f"step {step}: {message}", show=code not in self._told, code=code, step=step)
            self._told.add(code)
        self.latest = answer_rows(found, trainer)
        self._title = f"answers of the round of step {step}"
        if trainer.run is not None:
            self._title += f", all in {trainer.run.completions(step, self.latest)}"

    def show(self, trainer: OnlineTrainer) -> None:
        """The table of the latest round's first answers, once; for `log_completions`."""
        if not (self._title and trainer.args.log_completions and trainer.is_world_process_zero()):
            return
        shown = self.latest[: trainer.args.num_completions_to_print or NUM_SHOWN]
        title, self._title = f"{len(shown)} of {len(self.latest)} {self._title}", ""
        (self.console or Console()).print(round_table(shown, title))

    def _tell_engine(self, trainer: OnlineTrainer) -> None:
        """How the answers are decoded, once for each way; shown if it is not the fastest."""
        engine = trainer.generator
        if isinstance(engine, NativeGenerator) and engine.description not in self._told:
            trainer.tell("engine", f"answers are decoded with {engine.description}", show=engine.fell_back)
            self._told.add(engine.description)


def round_numbers(found: Round, *, solved_reward: float) -> dict[str, float]:
    """Every number of a round: what it was like, and how long its phases took."""
    num_tokens = sum(len(completion) for completion in found.groups.completions)
    return {
        **round_statistics(found, solved_reward=solved_reward),
        **{f"time/{phase}": seconds for phase, seconds in found.seconds.items()},
        "tokens_per_second/generate": num_tokens / max(found.seconds["generate"], 1e-9),
    }


def answer_rows(found: Round, trainer: OnlineTrainer) -> list[dict[str, Any]]:
    """The answers of this rank with prompt, rewards, advantage and what functions showed beside them.

    Returns:
        A row an answer: row (of the data set), prompt, completion, `rewards/NAME` of each function (None: not scored),
        reward (their weighted sum), advantage (the mean over its tokens), finish_reason, and `extra/NAME` of each
        column that functions showed with `log_extra`, as text.
    """
    groups, table = found.groups, found.groups.rewards
    answers = make_answers(groups.prompts, groups.completions, trainer.tokenizer)
    advantages: Sequence[float] = _mean_advantages(found.batch).tolist()
    totals: Sequence[float] = table.total().tolist()
    rows = []
    for index in range(len(answers)):
        scores = zip(table.names, table.rewards[index].tolist(), strict=True)
        rows.append(
            {
                "row": answers.row_id[index],
                "prompt": said(answers.prompts[index]),
                "completion": said(answers.completions[index]),
                **{f"{REWARD}{name}": _known(score) for name, score in scores},
                "reward": _known(totals[index]),
                "advantage": advantages[index],
                "finish_reason": groups.completions[index].finish_reason,
                **{f"{EXTRA}{name}": str(values[index]) for name, values in table.extra.items()},
            }
        )
    return rows


def _mean_advantages(batch: RolloutBatch) -> Tensor:
    """(N,) of an answer's trained tokens, or the answer's own."""
    if batch.advantages.shape[1] == 1:
        return batch.advantages.squeeze(1)
    return (batch.advantages * batch.loss_mask).sum(1) / batch.loss_mask.sum(1).clamp(min=1)


def _known(score: float) -> float | None:
    return None if math.isnan(score) else score


def said(messages: Any) -> str:
    """A text, or the content of the last message of a conversation."""
    if isinstance(messages, str):
        return messages
    content = messages[-1]["content"] if isinstance(messages[-1], Mapping) else messages[-1]
    return content if isinstance(content, str) else str(content)
