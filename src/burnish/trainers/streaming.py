"""Training on a stream: its end, its dropped rows, and where a resumed run goes on.

A stream has no length, so the Trainer counts `max_steps`. Each rank takes its own rows and hands out fillers once it
has none left; in the collective of a step's counts the ranks also say whether any has more. After the last step that
has rows the run stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset as TorchStream
from transformers import TrainerCallback

from burnish.data.report import COUNTS
from burnish.data.stream import NUM_DROPPED, NUM_READ, STREAM_COUNTS, RankStream, RowStream
from burnish.runtime.distributed import gather_rows
from burnish.trainers.host import Host

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.types import TokenBatch

COUNT = "stream"  # the name of a stream's numbers among the counts of a step
NUM_SHOWN = 3


class StreamLoader(DataLoader[Any]):
    """This rank's parcels of a stream, then fillers without end.

    A resumed stream has handed out batches before. The Trainer skips as many of the loader's, so that these come first,
    as None.

    Args:
        stream: this rank's rows.
        batch_size: rows of a micro-batch.
        collator: rows -> parcel.
        seed: of the loader's own generator, which keeps the global one untouched.
        pin_memory: copy parcels to page-locked memory.
    """

    def __init__(
        self,
        stream: RankStream,
        collator: Callable[[Sequence[dict[str, Any]]], TokenBatch],
        *,
        batch_size: int,
        seed: int,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            _Parcels(stream, collator, batch_size),
            batch_size=None,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(seed),
        )


class _Parcels(TorchStream[Any]):
    def __init__(self, stream: RankStream, collator: Callable[..., TokenBatch], batch_size: int) -> None:
        self.stream, self.collator, self.batch_size = stream, collator, batch_size

    def __iter__(self) -> Iterator[TokenBatch | None]:
        yield from [None] * self.stream.num_batches
        while True:
            rows = self.stream.take(self.batch_size)
            self.stream.num_batches += 1
            yield self.collator(rows or [self.stream.filler()])


class StreamingMixin(Host):
    """What a trainer does if its training rows are a stream, and nothing otherwise."""

    def _stream_loader(self, stream: RowStream) -> StreamLoader:
        args = self.args
        self._refuse_other_streams()
        self.rank_stream = RankStream(stream, rank=args.process_index, num_replicas=args.world_size)
        return StreamLoader(
            self.rank_stream,
            self.data_collator,
            batch_size=self._train_batch_size,
            seed=stream.seed,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
        )

    def _refuse_other_streams(self) -> None:
        """Every rank must read the same rows: they are dealt here, not by `split_dataset_by_node`."""
        own = int(self.data_reports["train"].fingerprint[:12], 16)  # exact in float64
        seen, _ = gather_rows(torch.tensor([[own]], dtype=torch.float64, device=self.args.device))  # (ranks, 1)
        if bool((seen != own).any()):
            raise ValueError(
                "the processes read different streams: give each the whole stream, not split by node; its rows are "
                "dealt to the processes here"
            )

    def stream_is_done(self) -> bool:
        """Whether a finished run was resumed: the Trainer, which knows no length, would begin another epoch."""
        done = self.rank_stream is not None and self.state.global_step >= self.state.max_steps
        self.control.should_training_stop |= done
        return done

    def stream_counts(self) -> dict[str, Tensor]:
        """What is summed over the ranks with a step's counts: whether a rank has more rows, and its `STREAM_COUNTS`."""
        if self.rank_stream is None:
            return {}
        stream = self.rank_stream
        numbers = [stream.has_more(), *(stream.counts[name] for name in STREAM_COUNTS)]
        return {COUNT: torch.tensor(numbers, dtype=torch.float64)}

    def follow_stream(self, counts: Mapping[str, Tensor]) -> bool:
        """Tell of dropped rows and remember the sums; False if there was no row for this step on any rank."""
        if self.rank_stream is None:
            return True
        has_more, *sums = map(int, counts[COUNT].tolist())
        self.stream_has_more, self.stream_sums = has_more > 0, dict(zip(STREAM_COUNTS, sums, strict=True))
        for bad in self.rank_stream.newly_dropped():
            number = self.rank_stream.dropped.index(bad.row) if bad.row in self.rank_stream.dropped else NUM_SHOWN
            message = f"{self.rank_stream.stream.name}: dropped {bad}"
            self.tell("dropped_row", message, show=number < NUM_SHOWN, row=bad.row, column=bad.column)
        if float(counts["input_token"]):
            return True
        self.control.should_training_stop = True  # resumed at the end of the stream
        return False

    def stream_lines(self) -> list[str]:
        """What was read and dropped so far, over all ranks, for a person."""
        assert self.rank_stream is not None
        counts, unread = self.stream_sums, sorted(self.rank_stream.unread)
        read, dropped = counts[NUM_READ], counts[NUM_DROPPED]
        share = f"{dropped} bad ones dropped ({dropped / max(read, 1):.1%})"
        lines = [f"{self.rank_stream.stream.name}: {read} rows read from the stream, {share}"]
        lines += [f"  {counts[name]} {meaning}" for name, meaning in COUNTS.items() if counts[name]]
        return lines + ([f"  not read, since the first rows do not have it: {', '.join(unread)}"] if unread else [])

    def stream_metrics(self) -> dict[str, float]:
        """What a log line says of the stream, over all ranks."""
        if self.rank_stream is None:
            return {}
        return {"num_stream_rows": self.stream_sums[NUM_READ], "num_dropped_rows": self.stream_sums[NUM_DROPPED]}


class StreamEnd(TrainerCallback):
    """Ends the run with its stream, and sums the stream up."""

    def __init__(self, trainer: StreamingMixin) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last step that has rows: what the last step of a run does."""
        trainer = self.trainer
        if trainer.rank_stream is None or trainer.stream_has_more or state.global_step >= state.max_steps:
            return
        control.should_training_stop = True
        control.should_save |= args.save_strategy == "steps"
        control.should_evaluate |= args.eval_strategy == "steps" and args.eval_delay <= state.global_step
        message = (
            f"the stream ended after step {state.global_step} of {state.max_steps}: training stops here, with the "
            f"learning rate on its way through {state.max_steps} steps"
        )
        trainer.tell("stream_end", message, step=state.global_step, max_steps=state.max_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell what was read and dropped; collects the places of dropped rows from all ranks."""
        trainer = self.trainer
        if trainer.rank_stream is None or not trainer.stream_sums:
            return
        own = torch.tensor(trainer.rank_stream.dropped, dtype=torch.float64, device=args.device)
        rows = sorted(int(row) for row in gather_rows(own[:, None])[0].flatten().tolist())
        lines = trainer.stream_lines()
        shown = bool(rows or trainer.rank_stream.unread)
        trainer.tell("stream", "\n".join(lines), show=shown, dropped_rows=rows, counts=dict(trainer.stream_sums))


def _as_it_is(parcel: Any) -> Any:
    return parcel
