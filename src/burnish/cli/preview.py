"""The exact tokens that a run file trains on, from the trainer's own data path, without the model's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from rich.console import Console
from rich.text import Text

from burnish.cli.functions import with_functions
from burnish.cli.methods import load, method_named
from burnish.cli.run import load_data, rows_by_source
from burnish.cli.runfile import RunFile
from burnish.data.errors import BadRow, BadRowsError
from burnish.data.prompts import prepare_prompts
from burnish.data.report import NUM_LISTED_BAD_ROWS
from burnish.data.sampler import RowDataset
from burnish.models.load import load_end_token_ids, load_tokenizer
from burnish.models.vision import tokenizer_of
from burnish.report.preview_console import preview_table, prompts_table
from burnish.report.preview_html import preview_page
from burnish.report.tokens import PromptView, view_batch, view_prompts
from burnish.runtime.rundir import atomic_write_text
from burnish.runtime.terminal import visible
from burnish.trainers.base import init_kwargs_of
from burnish.trainers.rows import make_collator, prepare_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.types import TokenBatch

ROW_ID = "row_id"
MAX_ROWS = NUM_LISTED_BAD_ROWS  # each of them may be bad, and is then told
Choice = Callable[[int], list[int]]


@dataclass(frozen=True)
class Preview:
    """Some rows of a run as they will be trained on.

    Attributes:
        title: of which run they are.
        views: the rows, from the collator's tensors.
        notes: what preparing them did, counted.
        bad_rows: those that cannot be trained on.
        end_token_ids: the tokens that end an answer.
    """

    title: str
    views: tuple[PromptView, ...]
    notes: tuple[str, ...]
    bad_rows: tuple[BadRow, ...]
    end_token_ids: tuple[int, ...]

    @property
    def lines(self) -> list[str]:
        """Notes, and what is wrong with each bad row."""
        return [*self.notes, *(f"cannot be trained on: {bad}" for bad in self.bad_rows)]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {
            "title": self.title,
            "end_token_ids": list(self.end_token_ids),
            "notes": list(self.notes),
            "rows": [view.as_dict() for view in self.views],
            "bad_rows": [vars(bad) for bad in self.bad_rows],
        }


def choose_rows(num_rows: int, rows: str | None) -> Choice:
    """How rows are chosen once their number is known: `rows`, such as "3,17", else so many spread evenly.

    Raises:
        ValueError: less than one row, more than `MAX_ROWS`, or no whole numbers.
    """
    if rows is None:
        if not 1 <= num_rows <= MAX_ROWS:
            raise ValueError(f"-n {num_rows} is not allowed: 1 to {MAX_ROWS}")
        return lambda total: [place * total // min(num_rows, total) for place in range(min(num_rows, total))]
    parts = list(dict.fromkeys(part.strip() for part in rows.split(",")))
    if len(parts) > MAX_ROWS or not all(part.isdecimal() for part in parts):
        raise ValueError(
            f"--rows {rows!r} is not allowed: up to {MAX_ROWS} whole numbers with commas between, such as --rows 3,17"
        )
    return lambda total: _within(list(map(int, parts)), total)


def preview_rows(runfile: RunFile, choose: Choice) -> Preview:
    """Prepare and collate the chosen training rows of a run as its trainer does.

    Raises:
        DataError: there are no rows to choose from.
        ValueError: a row that is not there, or an option that is not allowed.
    """
    disable_progress_bar()
    method = method_named(runfile.method)
    make_config, _ = load(method)
    args = make_config(**with_functions(runfile.training))
    sources = rows_by_source(load_data(runfile, args)[0])
    chosen = {name: choose(len(rows)) for name, rows in sources.items()}
    loading = {"trust_remote_code": args.trust_remote_code, "init_kwargs": init_kwargs_of(args)}
    processing_class = load_tokenizer(runfile.model, **loading)
    tokenizer = tokenizer_of(processing_class)
    end_token_ids = load_end_token_ids(runfile.model, tokenizer, **loading)
    options = {"processing_class": processing_class, "args": args, "end_token_ids": end_token_ids, "name": "these rows"}
    if not method.knows_rows:
        raise ValueError(f"the rows of {runfile.source} cannot be shown: {method.unread_rows}")
    if method.draws_answers:
        look = partial(_look_at_prompts, tokenizer=tokenizer, args=args)
    else:
        collate = make_collator(processing_class, args, end_token_ids=end_token_ids)
        look = partial(_look, tokenizer=tokenizer, collate=collate, options=options)
    counts = [f"{len(chosen[name])} of {len(rows)} rows of {_path(runfile, name)}" for name, rows in sources.items()]
    whole = Preview(f"{runfile.method} on {runfile.model}: {' and '.join(counts)}", (), (), (), end_token_ids)
    for name, rows in sources.items():
        views, notes, bad_rows = look(_selected(rows, chosen[name]))
        whole = replace(
            whole,
            views=(*whole.views, *views),
            notes=(*whole.notes, *([f"{name}:", *notes] if name else notes)),
            bad_rows=(*whole.bad_rows, *(replace(bad, row=chosen[name][bad.row]) for bad in bad_rows)),
        )
    return whole


def _look(
    selected: Dataset, *, tokenizer: PreTrainedTokenizerBase, collate: Any, options: dict[str, Any]
) -> tuple[Sequence[PromptView], list[str], Sequence[BadRow]]:
    """Some rows of one source: as they are trained, what was done to them, and those that cannot be trained on."""
    try:
        prepared, report = prepare_rows(selected, **options, on_bad_row="drop")
    except BadRowsError as error:
        return [], [], error.bad_rows
    notes = [line for line in report.lines()[1:] if not line.startswith("  dropped ")]
    whole = selected.select(_kept(len(selected), report.bad_rows))
    views = view_batch(_batch(prepared, collate), tokenizer, whole=_whole_batch(whole, collate, options))
    return views, notes, report.bad_rows


def _look_at_prompts(
    selected: Dataset, *, tokenizer: PreTrainedTokenizerBase, args: Any
) -> tuple[Sequence[PromptView], list[str], Sequence[BadRow]]:
    """The same of prompts that the policy answers itself."""
    numbers: list[int] = selected[ROW_ID]
    options = {"template_kwargs": args.chat_template_kwargs, "on_bad_row": "drop", "name": "these rows"}
    try:
        limit = args.max_prompt_length
        prepared, report = prepare_prompts(selected, tokenizer, max_prompt_length=limit, **options)
    except BadRowsError as error:
        return [], [], error.bad_rows
    notes = [line for line in report.lines()[1:] if not line.startswith("  dropped ")]
    whole, _ = prepare_prompts(selected, tokenizer, **options)
    prompts, given = ({numbers[row]: ids for row, ids in _prompt_ids(rows)} for rows in (prepared, whole))
    return view_prompts(prompts, tokenizer, whole=given), notes, report.bad_rows


def _prompt_ids(prepared: Any) -> Iterator[tuple[int, list[int]]]:
    """Number and token ids of each prepared row."""
    return zip(prepared["row_id"], prepared["prompt_input_ids"], strict=True)


def _path(runfile: RunFile, name: str) -> str:
    return runfile.train if isinstance(runfile.train, str) else runfile.train[name]


def show(seen: Preview, *, html: Path | None = None, is_full: bool = False, console: Console | None = None) -> None:
    """On the terminal."""
    console = console or Console()
    console.print(Text(visible(seen.title), style="bold"), soft_wrap=True)
    for line in seen.lines:
        console.print(Text(visible(line)), soft_wrap=True)
    table = preview_table if any(view.completions for view in seen.views) else prompts_table
    console.print(table(seen.views, is_full=is_full))
    if html is not None:
        console.print(Text(visible(f"\nwritten: {html}")), soft_wrap=True)


def write_page(seen: Preview, path: Path) -> None:
    """As an HTML file; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, preview_page(seen.title, seen.views, seen.lines))


def _batch(prepared: Dataset, collate: Any) -> TokenBatch:
    """One parcel of all rows, read and collated as by a trainer's loader."""
    return collate(RowDataset(prepared).__getitems__(range(len(prepared))))


def _whole_batch(rows: Dataset, collate: Any, options: dict[str, Any]) -> TokenBatch:
    """The same rows as if no length were limited, so that what is cut can be shown."""
    prepared, _ = prepare_rows(rows, **options, is_limited=False)
    return _batch(prepared, collate)


def _selected(rows: Dataset, chosen: Sequence[int]) -> Dataset:
    """The rows under the names that training gives them."""
    selected = rows.select(chosen)
    if ROW_ID in selected.column_names:
        return selected
    return selected.add_column(ROW_ID, list(chosen))  # pyright: ignore[reportCallIssue]


def _kept(num_rows: int, bad_rows: Sequence[BadRow]) -> list[int]:
    bad = {row.row for row in bad_rows}
    return [place for place in range(num_rows) if place not in bad]


def _within(chosen: list[int], total: int) -> list[int]:
    missing = [row for row in chosen if row >= total]
    if missing:
        raise ValueError(f"--rows: there is no row {missing[0]}; allowed: 0 to {total - 1}")
    return chosen
