"""The command `burnish`. Help, `init`, `check` and `env` answer without importing torch."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.errors import DATA, printable, shown_to_user
from burnish.cli.methods import METHODS
from burnish.cli.runfile import load_runfile

app = typer.Typer(
    name="burnish",
    help="Align language models: preference optimisation that is exact, light and readable.",
    epilog="First steps: burnish train recipe:dpo · burnish init dpo > run.yaml · burnish check run.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML run file, or recipe:NAME (recipe:dpo).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key, e.g. beta=0.2 or data.train=rows.jsonl. Repeatable."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error was raised.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"burnish {version('burnish')}")
        raise typer.Exit


@app.callback()
def burnish(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before any command."""


@app.command()
def train(config: Config, overrides: Overrides = None, debug: Debug = False) -> None:
    """Train what a run file says, from the start."""
    with shown_to_user(debug=debug):
        runfile = load_runfile(config, overrides or [])
        from burnish.cli.run import run

        run(runfile)


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a run, with its run.yaml.")],
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Continue a run exactly where its newest sound checkpoint was taken."""
    with shown_to_user(debug=debug):
        from burnish.cli.resume import load_run_directory

        runfile = load_run_directory(run_dir, overrides or [])
        from burnish.cli.run import run

        run(runfile, resume=True)


@app.command()
def init(
    method: Annotated[str, typer.Argument(metavar="METHOD", help=f"How to train: {', '.join(METHODS)}.")],
    every_option: Annotated[bool, typer.Option("--all", help="Every option, not only those that matter.")] = False,
) -> None:
    """Print a commented run file: burnish init dpo > run.yaml."""
    with shown_to_user(debug=False):
        from burnish.cli.template import template

        typer.echo(template(method, every_option=every_option), nl=False)


@app.command()
def check(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Find everything that is wrong with a run file, its rows and its space, in one pass, without loading torch."""
    with shown_to_user(debug=debug):
        from burnish.cli.checkup import check_up, summary

        found = check_up(config, overrides or [])
        if as_json:
            typer.echo(json.dumps(found.as_dict()))
            raise typer.Exit(found.exit_code)
        if found.runfile is not None and not found.problems:
            typer.echo(printable(summary(found.runfile)))
        typer.echo(printable("\n".join((*found.lines, *(f"warning: {warning}" for warning in found.warnings)))))
        if found.problems:
            typer.echo(printable(f"Error: {found.message}"), err=True)
            raise typer.Exit(found.exit_code)


@app.command()
def preview(
    config: Config,
    overrides: Overrides = None,
    num_rows: Annotated[int, typer.Option("-n", metavar="N", help="So many rows, spread over the data.")] = 5,
    rows: Annotated[str | None, typer.Option("--rows", metavar="3,17", help="These rows instead.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page to this file.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Show long passages whole.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tokens as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show the exact tokens that will be trained on. Loads the tokenizer, not the model."""
    with shown_to_user(debug=debug):
        runfile = load_runfile(config, overrides or [])
        from burnish.cli.preview import choose_rows, preview_rows, show, write_page

        seen = preview_rows(runfile, choose_rows(num_rows, rows))
        if html is not None:
            write_page(seen, html)
        if as_json:
            typer.echo(json.dumps(seen.as_dict()))
        else:
            show(seen, html=html, is_full=full)
        if not seen.views:
            raise typer.Exit(DATA)


@app.command()
def trace(
    config: Config,
    overrides: Overrides = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page to this file.")] = None,
    debug: Debug = False,
) -> None:
    """Run one micro-batch and show what crosses each wall: shapes, types, first values. Nothing is saved."""
    with shown_to_user(debug=debug):
        runfile = load_runfile(config, overrides or [])
        from burnish.cli.trace import show, trace_run, write_page

        seen = trace_run(runfile)
        if html is not None:
            write_page(seen, html)
        show(seen, html=html)


@app.command()
def rewards(
    config: Config,
    overrides: Overrides = None,
    sample: Annotated[int, typer.Option("--sample", min=1, help="So many rows are tried.")] = 20,
    debug: Debug = False,
) -> None:
    """Try the reward functions on right, empty, echoed and garbage answers, before a run."""
    with shown_to_user(debug=debug):
        runfile = load_runfile(config, overrides or [])
        from burnish.cli.try_rewards import try_run_rewards

        try_run_rewards(runfile, sample=sample)


@app.command()
def explain(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A method, loss, advantage, reward, option or metric.")
    ] = None,
) -> None:
    """Say what a name is: rooms, formula, shapes, options and paper. Without one: all names."""
    with shown_to_user(debug=False):
        from burnish.cli import explain as explaining

        typer.echo(printable(explaining.catalogue() if name is None else explaining.explain(name)))


@app.command()
def env() -> None:
    """Print versions and machine, to paste into an issue."""
    from burnish.cli.environment import environment_lines

    typer.echo("\n".join(environment_lines()))


def main() -> None:
    """The entry point of the command."""
    app()


if __name__ == "__main__":
    main()
