"""What is told of a round: its metrics, alarms, and the answers with their rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from burnish.data.errors import excerpt
from burnish.rollout.alarms import alarms
from burnish.rollout.collect import Round, make_answers
from burnish.rollout.statistics import round_statistics

if TYPE_CHECKING:
    from burnish.trainers.online import OnlineTrainer

NUM_SHOWN = 4


class RoundReport:
    """Tells each kind of alarm once, and counts the rest; keeps the latest answers for `log_completions`.

    Attributes:
        latest: this rank's answers of the latest round, a row each.
    """

    def __init__(self) -> None:
        self.latest: list[dict[str, Any]] = []
        self._told: set[str] = set()

    def tell(self, trainer: OnlineTrainer, found: Round) -> None:
        """Metrics to the buffer, alarms to the log, answers to the run directory."""
        numbers = round_numbers(found, solved_reward=trainer.args.solved_reward)
        numbers["curriculum/left_out"] = float(trainer.prompt_stream.num_left_out)
        trainer.metric_buffer.add({name: trainer.of_round(value) for name, value in numbers.items()})
        for code, message in alarms(numbers).items():
            step = trainer.state.global_step + 1
            trainer.tell("alarm", f"step {step}: {message}", show=code not in self._told, code=code, step=step)
            self._told.add(code)
        self.latest = answer_rows(found, trainer)
        if trainer.args.log_completions:
            shown = self.latest[: trainer.args.num_completions_to_print or NUM_SHOWN]
            trainer.tell("answers", "\n".join(map(answer_line, shown)), step=trainer.state.global_step + 1)
        if trainer.run is not None:
            trainer.run.completions(trainer.state.global_step + 1, self.latest)


def round_numbers(found: Round, *, solved_reward: float) -> dict[str, float]:
    """Every number of a round: what it was like, and how long its phases took."""
    num_tokens = sum(len(completion) for completion in found.groups.completions)
    return {
        **round_statistics(found, solved_reward=solved_reward),
        **{f"time/{phase}": seconds for phase, seconds in found.seconds.items()},
        "tokens_per_second/generate": num_tokens / max(found.seconds["generate"], 1e-9),
    }


def answer_rows(found: Round, trainer: OnlineTrainer) -> list[dict[str, Any]]:
    """The answers of this rank with prompt, rewards, advantage and what functions showed beside them."""
    groups, table = found.groups, found.groups.rewards
    answers = make_answers(groups.prompts, groups.completions, trainer.tokenizer)
    advantages: Sequence[float] = found.batch.advantages.mean(1).tolist()
    totals: Sequence[float] = table.total().tolist()
    rows = []
    for index in range(len(answers)):
        scores = dict(zip(table.names, table.rewards[index].tolist(), strict=True))
        rows.append(
            {
                "row": answers.row_id[index],
                "prompt": said(answers.prompts[index]),
                "completion": said(answers.completions[index]),
                **scores,
                "reward": totals[index],
                "advantage": advantages[index],
                "finish_reason": groups.completions[index].finish_reason,
                **{name: str(values[index]) for name, values in table.extra.items()},
            }
        )
    return rows


def answer_line(row: Mapping[str, Any]) -> str:
    """An answer with its reward, on one line.

    >>> answer_line({"prompt": "1 + 1 =", "completion": "2", "reward": 1.0, "advantage": 0.5})
    "reward 1, advantage +0.5: '1 + 1 =' -> '2'"
    """
    said_before, answer = excerpt(row["prompt"]), excerpt(row["completion"], length=120)
    return f"reward {row['reward']:.3g}, advantage {row['advantage']:+.3g}: {said_before} -> {answer}"


def said(messages: Any) -> str:
    """A text, or the content of the last message of a conversation."""
    if isinstance(messages, str):
        return messages
    content = messages[-1]["content"] if isinstance(messages[-1], Mapping) else messages[-1]
    return content if isinstance(content, str) else str(content)
