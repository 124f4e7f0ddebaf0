"""What happens around the steps of a run: the plan, and evaluation and sample answers before and after.

It happens inside `train`, so that the numbers are taken under the run's own settings and written to its directory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text
from transformers import TrainerCallback

from burnish.cli.answers import Prompt, greedy_answers
from burnish.cli.plan import plan_lines
from burnish.metrics import Estimate
from burnish.report.console import Answer, Sample, answers_table
from burnish.runtime.rundir import EVENTS, read_events
from burnish.runtime.terminal import visible
from burnish.trainers.sampling import EvalAnswers, answers_line

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from burnish.cli.runfile import RunFile
    from burnish.trainers.dpo import DPOTrainer


class Narration(TrainerCallback):
    """Tells the plan, and measures before the first and after the last step.

    Attributes:
        before, after: held-out estimates by prefixed name; empty where nothing was measured.
    """

    def __init__(self, trainer: DPOTrainer, runfile: RunFile, prompts: Sequence[Prompt], console: Console) -> None:
        self._trainer = trainer
        self._runfile = runfile
        self._prompts = prompts
        self._console = console
        self._evaluated_at: int | None = None
        self._answers: dict[str, list[Answer]] = {}
        self._shown_answers: dict[str, EvalAnswers] = {}
        self.before: Mapping[str, Estimate] = {}
        self.after: Mapping[str, Estimate] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the plan; measure, or read what was measured before the run was interrupted."""
        for line in plan_lines(self._runfile, self._trainer, state):
            self._say(line)
        if state.global_step == 0:
            self._say("Before training: evaluating and answering the sample prompts.")
            self.before = self._measure("before", evaluate=True)
        else:
            self._recall()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember the step, so that the last one is not evaluated twice; show the answers, if there are any."""
        self._evaluated_at = state.global_step
        for data_set, found in self._trainer.eval_answers.items():
            if self._shown_answers.get(data_set) is not found and self._trainer.is_world_process_zero():
                self._console.print(answers_table(found, answers_line(found)))
                self._shown_answers[data_set] = found

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure again."""
        self._say("After training: evaluating and answering the sample prompts.")
        is_known = self._evaluated_at == state.global_step and not args.load_best_model_at_end
        self.after = self._measure("after", evaluate=not is_known)

    def samples(self) -> tuple[Sample, ...]:
        """The sample prompts with the answers before and after."""
        before = self._answers.get("before") or [None] * len(self._prompts)
        after = self._answers.get("after", [])
        triples = zip(self._prompts, before, after, strict=False)
        return tuple(Sample(prompt.shown, first, second) for prompt, first, second in triples)

    def _measure(self, when: str, *, evaluate: bool) -> dict[str, Estimate]:
        trainer = self._trainer
        if trainer.eval_dataset is not None and evaluate:
            trainer.evaluate()
        estimates = dict(trainer.estimates) if trainer.eval_dataset is not None else {}
        if trainer.is_world_process_zero():
            self._answers[when] = greedy_answers(
                trainer.policy,
                trainer.tokenizer,
                self._prompts,
                max_new_tokens=self._runfile.max_new_tokens,
                end_token_ids=trainer.end_token_ids,
            )
        if trainer.run is not None:
            shown = [{"prompt": p.shown, **asdict(a)} for p, a in zip(self._prompts, self._answers[when], strict=True)]
            found = {name: asdict(estimate) for name, estimate in estimates.items()}
            trainer.run.event("measured", when=when, step=trainer.state.global_step, estimates=found, answers=shown)
        return estimates

    def _recall(self) -> None:
        """What was measured at step 0, from the events of the run directory."""
        events = [event for event in read_events(self._trainer.run_path / EVENTS) if event.get("when") == "before"]
        measured = [event for event in events if event.get("kind") == "measured"]
        if not measured:
            self._say("What was measured before the first step is not in the run directory.")
            return
        self.before = {name: _estimate(values) for name, values in measured[-1]["estimates"].items()}
        known = {answer["prompt"]: Answer(answer["text"], answer["is_cut"]) for answer in measured[-1]["answers"]}
        if all(prompt.shown in known for prompt in self._prompts):
            self._answers["before"] = [known[prompt.shown] for prompt in self._prompts]

    def _say(self, line: str) -> None:
        if self._trainer.is_world_process_zero():
            self._console.print(Text(visible(line)), soft_wrap=True)


def _estimate(values: Mapping[str, Any]) -> Estimate:
    """From an event, in which numbers that are not finite are strings."""
    return Estimate(**{name: float(value) for name, value in values.items()})
