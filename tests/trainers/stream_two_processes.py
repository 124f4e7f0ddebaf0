"""Run by torchrun in `test_streaming_two_processes`: train on a stream, and write what each rank saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "invariants")]

import torch  # noqa: E402 - the paths come first
from datasets import IterableDataset  # noqa: E402
from training import make_trainer, step_gradients  # noqa: E402

from burnish.data import stream as room  # noqa: E402
from conftest import make_rows  # noqa: E402
from ranks import finish  # noqa: E402


def generate(rows):
    yield from rows


def main() -> None:
    """argv: output directory, JSON options, `bad` being the indices of rows that are none."""
    output, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    room.NUM_CHECKED, room.CHUNK_ROWS = 5, 3
    rows, bad = make_rows(options.pop("num_rows")), options.pop("bad", [])
    rows = [{**row, "rejected": row["chosen"]} if index in bad else row for index, row in enumerate(rows)]
    resume, apart = options.pop("resume", None), options.pop("apart", False)
    source = IterableDataset.from_generator(generate, gen_kwargs={"rows": rows})
    trainer = make_trainer(output / "run", rows=source, use_cpu=True, **options)
    rank = trainer.args.process_index
    if apart and rank:
        shifted = IterableDataset.from_generator(generate, gen_kwargs={"rows": rows[1:]})
        trainer.train_dataset = trainer._check_stream(shifted)
    seen: list[list[int]] = []
    own = trainer.get_batch_samples

    def record(*arguments):
        parcels, counts = own(*arguments)
        seen.append([int(row) for p in parcels if not p.is_filler for row in p.row_id[p.pairs[:, 0]]])
        return parcels, counts

    trainer.get_batch_samples = record
    if resume is None:
        torch.save(step_gradients(trainer), output / f"gradients-{rank}.pt")
    else:
        trainer.train(resume_from_checkpoint=str(output / "run" / resume))
    state = trainer.model.state_dict()
    total = sum(float(tensor.double().sum()) for tensor in state.values())
    (output / f"seen-{rank}{'-again' if resume else ''}.json").write_text(json.dumps([seen, total]))


if __name__ == "__main__":
    main()
    finish()
