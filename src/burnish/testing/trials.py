"""Short trainings of any trainer on a tiny model, and what is read off them: gradients, parcels, weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback

from burnish.testing.tiny import near_wanted, tiny_model, tiny_tokenizer
from burnish.trainers.online import OnlineTrainer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from burnish.trainers.base import PolicyTrainer
    from burnish.types import TokenBatch

SETTINGS: Mapping[str, Any] = {
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "cpu_tuning": "off",
    "use_cpu": True,
    "seed": 5,
}
ONLINE: Mapping[str, Any] = {"max_completion_length": 6, "reward_isolation": "none"}


@dataclass(frozen=True)
class Case:
    """The rows of an optimizer step, and the answers to each of them where the trainer draws its own."""

    rows: Sequence[Mapping[str, Any]]
    num_generations: int | None

    @property
    def size(self) -> int:
        """Rows of the step, or answers."""
        return len(self.rows) * (self.num_generations or 1)

    def show(self) -> str:
        """For the message."""
        answers = "" if self.num_generations is None else f", {self.num_generations} answers to each"
        lines = [f"  row {place}: {dict(row)}" for place, row in enumerate(self.rows)]
        return "\n".join([f"  an optimizer step of {len(self.rows)} rows{answers}", *lines])


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """A trainer, and what it is given.

    Attributes:
        trainer: the class.
        options: of its configuration.
        make_rows: (count) -> rows.
        make_model: (seed, dtype) -> the model.
        make_keywords: -> further keywords of the constructor.
        reward_funcs: of a trainer that draws its own answers.
        processes: of the law about them.
        directory: where runs are written, each into a directory of its own.
    """

    trainer: type[PolicyTrainer]
    make_rows: Callable[[int], Sequence[Mapping[str, Any]]]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    make_model: Callable[..., Any] = tiny_model
    make_keywords: Callable[[], Mapping[str, Any]] | None = None
    reward_funcs: Any = near_wanted
    processes: int = 2
    directory: Path = Path()

    @property
    def is_online(self) -> bool:
        """It draws its own answers."""
        return issubclass(self.trainer, OnlineTrainer)

    @property
    def learns_from_rewards(self) -> bool:
        """What scores better is what it should say; not so of a trainer whose rewards only measure."""
        return not issubclass(self.trainer, OnlineTrainer) or self.trainer.learns_from_rewards

    def most_micro_batches(self, case: Case) -> int:
        """Into how many micro-batches the case can be cut: of one row, or of the answers to one prompt."""
        together = (
            case.num_generations if issubclass(self.trainer, OnlineTrainer) and self.trainer.compares_answers else 1
        )
        return case.size // (together or 1)

    def case(self, num_rows: int) -> Case:
        """A step of so many rows; two answers to each where they are drawn."""
        return Case(self.make_rows(num_rows), 2 if self.is_online else None)

    def make(
        self,
        case: Case,
        *,
        micro_batches: int = 1,
        processes: int = 1,
        dtype: torch.dtype = torch.float64,
        model: Any = None,
        output_dir: Path | str | None = None,
        **options: Any,
    ) -> PolicyTrainer:
        """A trainer whose optimizer steps are the case, cut into so many micro-batches on each process.

        Args:
            case: the rows of a step.
            micro_batches: of a process.
            processes: how many share the step.
            dtype: of the weights.
            model: instead of `make_model`'s.
            output_dir: instead of a directory of its own.
            options: over those of the trial.
        """
        chosen = {**SETTINGS, "max_steps": 1, **(ONLINE if self.is_online else {}), **self.options, **options}
        chosen["per_device_train_batch_size"] = case.size // micro_batches // processes
        chosen["gradient_accumulation_steps"] = micro_batches
        if case.num_generations is not None:
            chosen["num_generations"] = case.num_generations
        chosen["output_dir"] = str(output_dir or tempfile.mkdtemp(dir=self.directory))
        keywords = dict(self.make_keywords()) if self.make_keywords is not None else {}
        if self.is_online:
            keywords["reward_funcs"] = self.reward_funcs
        trainer: Any = self.trainer
        made = trainer(
            self.make_model(0, dtype) if model is None else model,
            args=trainer.config_class(**chosen),
            train_dataset=[dict(row) for row in case.rows],
            processing_class=tiny_tokenizer(),
            **keywords,
        )
        made.remove_callback(PrinterCallback)
        return made

    def option(self, name: str, value: Any) -> dict[str, Any]:
        """An option, if its configuration has it."""
        return {name: value} if name in {item.name for item in fields(self.trainer.config_class)} else {}


def step_gradients(trainer: Any) -> list[Tensor]:
    """Train, and return the whole gradient of each optimizer step before clipping, (all parameters,)."""
    gradients: list[Tensor] = []
    own = trainer._clip_grad_norm

    def record(model: nn.Module) -> Any:
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained]))
        return own(model)

    trainer._clip_grad_norm = record
    trainer.train()
    return gradients


def relative_distance(first: Tensor, second: Tensor) -> float:
    """|first - second| / |second| in the Euclidean norm; without the division where the second is 0."""
    return float((first - second).norm() / (second.norm() or 1.0))


def change_parcels(trainer: Any, change: Callable[[Any], Any]) -> Any:
    """Let the trainer get its parcels changed, and those of a step in reverse order; returns the trainer."""
    own = trainer.take_parcels

    def take(*arguments: Any) -> list[TokenBatch]:
        return [change(parcel) for parcel in own(*arguments)][::-1]

    trainer.take_parcels = take
    return trainer


def first_step(trainer: Any) -> tuple[list[Any], Mapping[str, Tensor]]:
    """Train, and return parcels and counts of the first optimizer step, as its loss was given them."""
    taken: list[Any] = []
    own = trainer.get_batch_samples

    def record(*arguments: Any) -> Any:
        taken.append(own(*arguments))
        return taken[-1]

    trainer.get_batch_samples = record
    trainer.train()
    return taken[0]


def garbled(parcel: Any) -> Any:
    """The same parcel with three more columns of padding on each side, and other contents of all padding."""
    prompt_mask, mask = parcel.prompt_mask, parcel.completion_mask
    width, more = mask.shape[1], 3 if mask.shape[1] > 1 else 0  # of one column nobody knows which fields are per token
    changed: dict[str, Any] = {
        "prompt_ids": _beside(parcel.prompt_ids, prompt_mask, left=3),
        "prompt_mask": torch.nn.functional.pad(prompt_mask, (3, 0), value=False),
    }
    for name in parcel.row_fields:
        values = getattr(parcel, name)
        if values is not None and (values.shape[1] == width and (more or name.endswith(("_ids", "_mask")))):
            changed[name] = _beside(values, mask, right=more)
    return replace(parcel, **changed)


def _beside(values: Tensor, mask: Tensor, *, left: int = 0, right: int = 0) -> Tensor:
    """Values with something else outside the mask, and more of that at the sides; what is no mask itself."""
    if values.dtype == torch.bool:
        return torch.nn.functional.pad(values & mask, (left, right), value=False)
    other = -2.5 if values.is_floating_point() else 5
    return torch.nn.functional.pad(torch.where(mask, values, other), (left, right), value=other)


def reversed_rows(parcel: Any) -> Any:
    """The same parcel with its rows, and its pairs, in reverse order."""
    count = len(parcel)
    moved = parcel.take(torch.arange(count, device=parcel.row_id.device).flip(0))
    of_pairs = ("pairs", "margin", "weight")
    flipped = {name: moved[name].flip(0) for name in of_pairs if name in moved and moved[name] is not None}
    return replace(moved, **flipped)


class StopAfter(TrainerCallback):
    """Ends a run after a step, without anything that a planned end would do."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise, as Ctrl-C would."""
        if state.global_step >= self.step:
            raise KeyboardInterrupt


def weights_of(trainer: Any) -> dict[str, Tensor]:
    """A copy of all that is trained."""
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
