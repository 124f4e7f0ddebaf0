"""The arithmetic of a round: how many prompts, answers, optimizer steps and micro-batches, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """What a round is made of.

    Attributes:
        num_generations: answers to each prompt, G.
        rows: answers in a micro-batch of one process.
        micro_batches: of an optimizer step, on each process.
        steps: optimizer steps in one pass over the round.
        iterations: passes over the round.
        processes: that share the prompts.

    Example: 8 rows, 2 micro-batches, 4 steps, 2 processes and G = 8 are 16 prompts and 128 answers a round.
    """

    num_generations: int
    rows: int
    micro_batches: int
    steps: int
    iterations: int = 1
    processes: int = 1

    @property
    def rows_per_process(self) -> int:
        """Answers of a round on one process."""
        return self.rows * self.micro_batches * self.steps

    @property
    def prompts_per_process(self) -> int:
        """Prompts of a round on one process."""
        return self.rows_per_process // self.num_generations

    @property
    def prompts(self) -> int:
        """Prompts of a round."""
        return self.prompts_per_process * self.processes

    @property
    def total_steps(self) -> int:
        """Optimizer steps of a round."""
        return self.steps * self.iterations

    def steps_of(self, answers: int) -> int:
        """Optimizer steps of so many answers, in whole rounds."""
        return -(-answers // (self.prompts * self.num_generations)) * self.total_steps

    def micro_batches_in_epoch(self, num_prompts: int) -> int:
        """Micro-batches of one process in an epoch: whole rounds, at least one."""
        return max(num_prompts // self.prompts, 1) * self.total_steps * self.micro_batches

    def describe(self, *, num_steps: int) -> str:
        """The arithmetic in words.

        >>> RoundPlan(num_generations=8, rows=8, micro_batches=4, steps=4).describe(num_steps=1250)
        '16 prompts × 8 = 128 answers a round, 4 optimizer steps a round, 1,250 steps'
        """
        processes = f" on {self.processes} processes" if self.processes > 1 else ""
        passes = f" ({self.steps} × {self.iterations} passes)" if self.iterations > 1 else ""
        return (
            f"{_count(self.prompts, 'prompt')} × {self.num_generations} = {self.prompts * self.num_generations} "
            f"answers a round{processes}, {_count(self.total_steps, 'optimizer step')} a round{passes}, "
            f"{_count(num_steps, 'step')}"
        )


def plan_round(
    *,
    num_generations: int,
    per_device_train_batch_size: int,
    gradient_accumulation_steps: int,
    steps_per_generation: int | None,
    generation_batch_size: int | None,
    num_iterations: int,
    processes: int,
    fewest_generations: int = 2,
) -> RoundPlan:
    """The plan that options under TRL's names describe.

    `steps_per_generation` counts micro-batches, as in TRL, and defaults to one optimizer step. Fewer than one
    optimizer step is a round of one step: the policy does not change within it.

    Raises:
        ValueError: numbers that do not divide; the message says which would.
    """
    for name, value, least in (
        ("num_generations", num_generations, fewest_generations),
        ("num_iterations", num_iterations, 1),
        ("per_device_train_batch_size", per_device_train_batch_size, 1),
        ("gradient_accumulation_steps", gradient_accumulation_steps, 1),
    ):
        if value < least:
            why = ": a group of one has nothing to compare with" if (name, value) == ("num_generations", 1) else ""
            raise ValueError(f"{name}={value!r}; allowed: {least} or more{why}")
    rows, step = per_device_train_batch_size, gradient_accumulation_steps
    micro_batches = _micro_batches(rows, step, steps_per_generation, generation_batch_size, processes)
    if micro_batches < step and step % micro_batches == 0:
        micro_batches = step
    if micro_batches % step:
        raise ValueError(
            f"a round of {micro_batches} micro-batches is no whole number of optimizer steps of {step} micro-batches: "
            f"steps_per_generation={steps_per_generation!r}, generation_batch_size={generation_batch_size!r}, "
            f"gradient_accumulation_steps={step}. Legal: steps_per_generation={step}, {2 * step}, {3 * step}, …"
        )
    if rows * micro_batches % num_generations:
        raise ValueError(_undivided(num_generations, rows, step, micro_batches, processes))
    return RoundPlan(
        num_generations=num_generations,
        rows=rows,
        micro_batches=step,
        steps=micro_batches // step,
        iterations=num_iterations,
        processes=processes,
    )


def refuse_cut_groups(plan: RoundPlan) -> None:
    """For losses that read all answers to a prompt at once.

    Raises:
        ValueError: a micro-batch would end within a group; the message says which settings keep them whole.
    """
    if plan.rows % plan.num_generations:
        size = plan.num_generations
        raise ValueError(
            f"per_device_train_batch_size={plan.rows} cuts groups of num_generations={size} answers apart, and the "
            f"loss compares answers. Legal: per_device_train_batch_size={size}, {2 * size}, {3 * size}, …"
        )


def _micro_batches(
    rows: int, step: int, steps_per_generation: int | None, generation_batch_size: int | None, processes: int
) -> int:
    if steps_per_generation is not None and generation_batch_size is not None:
        raise ValueError(
            f"steps_per_generation={steps_per_generation} and generation_batch_size={generation_batch_size} say the "
            "same thing twice: set one of them"
        )
    if steps_per_generation is not None:
        if steps_per_generation < 1:
            raise ValueError(f"steps_per_generation={steps_per_generation!r}; allowed: 1 or more")
        return steps_per_generation
    if generation_batch_size is None:
        return step
    if generation_batch_size < 1 or generation_batch_size % (rows * processes):
        raise ValueError(
            f"generation_batch_size={generation_batch_size} is no multiple of per_device_train_batch_size x processes "
            f"= {rows} x {processes} = {rows * processes}"
        )
    return generation_batch_size // (rows * processes)


def _undivided(num_generations: int, rows: int, step: int, micro_batches: int, processes: int) -> str:
    """Whole groups are dealt to processes; which settings would give each of them some."""
    held = rows * micro_batches
    by_rows = [n for n in range(1, 8 * num_generations + 1) if n * micro_batches % num_generations == 0][:3]
    by_step = [n for n in range(1, 8 * num_generations + 1) if n * step * rows % num_generations == 0][:3]
    return (
        f"a round has {rows} answers x {micro_batches} micro-batches = {held} on each of {processes} processes, which "
        f"is no whole number of groups of num_generations={num_generations}. Legal, one of:\n"
        f"- per_device_train_batch_size={_either(by_rows)}\n"
        f"- steps_per_generation={_either([n * step for n in by_step])}\n"
        f"- num_generations={_either([n for n in range(2, held + 1) if held % n == 0]) or 'none'}"
    )


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def cut_rows(plan: RoundPlan) -> list[list[range]]:
    """The rows of each micro-batch of each optimizer step, in order, so that a group stays together where it fits.

    >>> cut_rows(RoundPlan(num_generations=2, rows=2, micro_batches=2, steps=1))
    [[range(0, 2), range(2, 4)]]
    """
    starts = range(0, plan.rows_per_process, plan.rows)
    cut = [range(start, start + plan.rows) for start in starts]
    return [cut[first : first + plan.micro_batches] for first in range(0, len(cut), plan.micro_batches)]
