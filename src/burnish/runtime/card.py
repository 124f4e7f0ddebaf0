"""The model card: what a run was and what came of it, as the README.md of the model. Pure: a record in, text out.

Nothing is looked up. Secrets and the home directory of whoever ran it do not appear; rows of the data do not either.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from burnish.intervals import normal, shown_interval, wilson
from burnish.metrics import explain
from burnish.runtime.manifest import redact, redact_text
from burnish.runtime.markdown import block, code, folded, one_line, table
from burnish.runtime.record import RunRecord
from burnish.runtime.usage import CardOptions, Names, kind_of, usage

CARD = "README.md"
MARK = "<!-- This model card was written by Burnish. -->"
HEADLINES = (
    "loss", "rewards/accuracies", "rewards/margins", "win_rate", "accuracy", "accuracy_greedy", "reward", "margin",
    "calibration_error",
)  # fmt: skip
# Told for the record, and nothing is wrong; and what holds rows of the data, which are counted and not shown.
SILENT_EVENTS = frozenset({
    "first_step", "reference", "push", "answers", "adapter", "mixture", "stream", "stream_end", "padding"
})  # fmt: skip
PRIVATE_EVENTS = frozenset({"dropped_row"})
NUM_SHOWN_MESSAGES = 3

_SHARE = re.compile(
    r".*_(rewards/accuracies(_chosen_shorter|/.*)?|accuracy(_chosen_shorter|/.*)|reliability/.*|win_rate|"
    r"mean_token_accuracy|truncated)"
)
_ARXIV = re.compile(r"\d{4}\.\d{4,5}")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@\S+)?")


def is_own_card(path: Path) -> bool:
    """Whether a README.md was written here, and not by a person."""
    return MARK in path.read_text(encoding="utf-8", errors="replace")


def card_text(record: RunRecord, options: CardOptions) -> str:
    """The card in Markdown, with the front matter that the hub reads."""
    made_with = redact(record.manifest)
    facts = RunRecord(redact(record.config), made_with, record.metrics, redact(list(record.events)))
    sections = [
        f"# {options.model_name}",
        _summary(facts, options),
        _results(facts, options.step),
        _data(facts, options),
        _warnings(facts),
        _settings(facts),
        _origin(made_with),
        usage(str(_part(made_with, "model").get("class")), options),
        _citation(made_with),
        MARK,
    ]
    front = yaml.safe_dump(front_matter(facts, options), sort_keys=False, allow_unicode=True)
    body = "\n\n".join(section for section in sections if section)
    return _without_home(redact_text(f"---\n{front}---\n\n{body}\n"))


def front_matter(record: RunRecord, options: CardOptions) -> dict[str, Any]:
    """What the hub reads of a card."""
    model, method = _part(record.manifest, "model"), _part(record.manifest, "method")
    losses = [loss["name"] for loss in method.get("losses", ())]
    own_tags = ["burnish", *([method["name"]] if method.get("name") else []), *losses]
    content = {
        "model_name": options.model_name,
        "base_model": options.finetuned_from or model.get("hub_name"),
        "library_name": "peft" if options.is_adapter else "transformers",
        "pipeline_tag": next(iter(_names(options.tasks)), kind_of(str(model.get("class"))).task),
        "license": options.license or model.get("license"),
        "language": _names(options.language),
        "datasets": _names(options.dataset_tags) or [_without_revision(s) for s in _sources(record) if _on_hub(s)],
        "tags": list(dict.fromkeys([*own_tags, *_names(options.tags), *_names(options.tasks)])),
    }
    return {name: value for name, value in content.items() if value}


def _summary(record: RunRecord, options: CardOptions) -> str:
    model, method = _part(record.manifest, "model"), _part(record.manifest, "method")
    base = options.finetuned_from or model.get("hub_name") or Path(str(model.get("name") or "")).name
    trainable, all_of_them = model.get("trainable"), model.get("parameters")
    size = f", {trainable:,} of {all_of_them:,} parameters" if trainable and all_of_them else ""
    licence = options.license or model.get("license")
    of_base = "" if options.license else ", that of the base model"
    lines = [
        f"{'An adapter for' if options.is_adapter else 'Made from'} {code(base) if base else 'a model in memory'} by "
        f"{code(method.get('trainer', 'a trainer'))} of Burnish: step {options.step}{size}.",
        *(f"{event['message']}." for event in record.of_kind("adapter")[-1:]),
        *([f"Licence: {licence}{of_base}."] if licence else []),
    ]
    losses = [
        f"- loss {code(loss['name'])}{_factor(loss)}{_paper_link(loss.get('paper'))}"
        for loss in method.get("losses", ())
    ]
    return "\n\n".join([*lines, *(["\n".join(losses)] if losses else [])])


def _factor(loss: Mapping[str, Any]) -> str:
    weight = loss.get("weight", 1)
    return "" if weight == 1 else f", times {weight:g}"


def _paper_link(paper: str | None) -> str:
    if paper and _ARXIV.fullmatch(paper):
        return f": [arXiv {paper}](https://arxiv.org/abs/{paper})"
    return f": {one_line(paper)}" if paper else ""


def _results(record: RunRecord, step: int) -> str:
    """Held-out numbers at the first and at the last evaluation up to the step of the weights."""
    by_step: dict[int, dict[str, Any]] = {}
    for event in record.of_kind("evaluation"):
        if event["step"] <= step:
            by_step.setdefault(event["step"], {}).update(event["estimates"])
    if not by_step:
        return "## Held-out results\n\nNothing was evaluated."
    shown_steps = list(dict.fromkeys([min(by_step), max(by_step)]))
    names = list(dict.fromkeys(name for shown in shown_steps for name in by_step[shown]))
    rows = {
        name: [_estimate(by_step[step].get(name), _is_share(name, names)) for step in shown_steps] for name in names
    }
    head = ["metric", *(f"step {shown}" for shown in shown_steps)]
    main = [[code(name), *cells] for name, cells in rows.items() if _is_headline(name)]
    rest = [[code(name), *cells, explain(name) or ""] for name, cells in rows.items() if not _is_headline(name)]
    parts = ["## Held-out results", "Means with 95 % intervals.", *([table(head, main)] if main else [])]
    parts += [_judgement(record)] if any(name.endswith("_win_rate") for name in names) else []
    return "\n\n".join([*parts, *([folded("Other metrics", table([*head, "what it is"], rest))] if rest else [])])


def _judgement(record: RunRecord) -> str:
    """Against what, and by which function, the win rate was judged last."""
    judged = [event for event in record.of_kind("answers") if event.get("against")]
    return (
        f"Win rate: against {one_line(judged[-1]['against'])}, judged by {code(judged[-1]['judge'])}." if judged else ""
    )


def _is_headline(name: str) -> bool:
    return any(name.endswith(f"_{headline}") for headline in HEADLINES)


def _is_share(name: str, names: Sequence[str]) -> bool:
    """A share of units that are right or wrong; the accuracy of a policy is a mean over groups of answers."""
    of_pairs = name.endswith("_accuracy") and f"{name.removesuffix('_accuracy')}_margin" in names
    return of_pairs or _SHARE.fullmatch(name) is not None


def _estimate(values: Mapping[str, Any] | None, is_share: bool) -> str:
    if values is None:
        return "not measured"
    mean, weight, error = (float(values[key]) for key in ("mean", "weight", "standard_error"))
    return shown_interval(mean, wilson(mean, weight) if is_share else normal(mean, error))


def _data(record: RunRecord, options: CardOptions) -> str:
    """What was trained and evaluated on; the bad rows are counted, and what they held stays where it was."""
    reports = {event["data_set"]: event["lines"] for event in record.of_kind("data")}
    lines = [line for report in reports.values() for line in report if not line.startswith("  dropped ")]
    lines += [
        line for kind in ("mixture", "stream") for e in record.of_kind(kind)[-1:] for line in e["message"].split("\n")
    ]
    configurations = _names(options.dataset_args)
    named = [f"- {code(name)}" for name in _names(options.dataset) or _sources(record)]
    named += [f"- configuration {code(name)}" for name in configurations]
    reported = block("text", lines) if lines else ""
    return "\n\n".join(part for part in ("## Data", "\n".join(named), reported) if part) if named or lines else ""


def _sources(record: RunRecord) -> list[str]:
    """Where the rows came from, if the run was made from a file: names, and of paths the file's name."""
    data = _part(record.config, "data")
    parts = [data.get("train"), data.get("eval")]
    found = [source for part in parts for source in (part.values() if isinstance(part, Mapping) else [part])]
    shown = [Path(source).name if Path(source).is_absolute() else source for source in found if source]
    return list(dict.fromkeys(shown))


def _on_hub(source: str) -> bool:
    return _HUB_NAME.fullmatch(source) is not None and not Path(source).suffix


def _without_revision(source: str) -> str:
    return source.partition("@")[0]


def _warnings(record: RunRecord) -> str:
    """What was skipped, dropped or warned of, counted by kind."""
    told: dict[str, list[str]] = {}
    for event in record.events:
        is_wrong = event.get("kind") not in SILENT_EVENTS or event.get("ok") is False
        if "message" in event and is_wrong:
            told.setdefault(event["kind"], []).append(event["message"])
    lines: list[str] = []
    for kind, messages in told.items():
        lines.append(f"- {code(kind)}, {len(messages)} times" if len(messages) > 1 else f"- {code(kind)}")
        if kind in PRIVATE_EVENTS:
            continue
        lines += [f"  - {one_line(message)}" for message in messages[:NUM_SHOWN_MESSAGES]]
        lines += [f"  - and {len(messages) - NUM_SHOWN_MESSAGES} more"] if len(messages) > NUM_SHOWN_MESSAGES else []
    resumes = len(record.of_kind("resume"))
    lines += [f"- resumed {resumes} times"] if resumes else []
    return "\n".join(["## What was skipped or warned of", "", *(lines or ["Nothing."])])


def _settings(record: RunRecord) -> str:
    options = _part(record.config, "training")
    chosen = [name for name in record.manifest.get("options_set", ()) if name in options]
    rows = {name: [code(name), code(json.dumps(value, ensure_ascii=False))] for name, value in options.items()}
    own = table(["option", "value"], [rows[name] for name in chosen]) if chosen else "All have their defaults."
    return "\n\n".join(
        ["## Options that were set", own, folded("All options", table(["option", "value"], rows.values()))]
    )


def _origin(manifest: Mapping[str, Any]) -> str:
    """Command, versions and hardware."""
    versions = {name: version for name, version in _part(manifest, "versions").items() if version}
    cpu, memory = _part(manifest, "cpu"), manifest.get("memory_bytes")
    machine = [*manifest.get("accelerators", ()), f"{cpu.get('count')} × {cpu.get('model')}" if cpu else ""]
    machine += [f"{memory / 1e9:.0f} GB of memory" if memory else "", manifest.get("platform") or ""]
    git, seed = manifest.get("git"), manifest.get("seed")
    rows = [
        ["seed", str(seed)] if seed is not None else [],
        ["machine", ", ".join(part for part in machine if part)],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
        ["code", f"commit {git['sha']}{', with changes' if git['dirty'] else ''}"] if git else [],
    ]
    command = block("bash", [shown_command(manifest.get("command") or [])]) if manifest.get("command") else ""
    made_with = table(["", ""], [[name, one_line(value)] for name, value in filter(None, rows) if value])
    return "\n\n".join(part for part in ("## How it was made", command, made_with) if part)


def shown_command(command: Sequence[str]) -> str:
    """A command line as somebody would type it, without the place of the program.

    >>> shown_command(["/opt/env/bin/burnish", "train", "recipe:dpo"]), shown_command(["work/train.py", "--beta=0.1"])
    ('burnish train recipe:dpo', 'python work/train.py --beta=0.1')
    """
    program, *rest = command
    if program.endswith("__main__.py"):
        return shlex.join(["python", "-m", Path(program).parent.name, *rest])
    if program.endswith(".py") or program.startswith("-"):
        return shlex.join(["python", program, *rest])
    return shlex.join([Path(program).name, *rest])


def _citation(manifest: Mapping[str, Any]) -> str:
    papers = dict.fromkeys(loss.get("paper") for loss in _part(manifest, "method").get("losses", ()))
    entries = [bibtex(paper) for paper in papers if paper and _ARXIV.fullmatch(paper)]
    return "## Citation\n\n" + block("bibtex", entries) if entries else ""


def bibtex(paper: str) -> str:
    """The BibTeX entry of a paper on arXiv, from its number alone: year and address, no title and no names.

    >>> print(bibtex("2305.18290"))
    @misc{arxiv-2305.18290,
      note = {arXiv:2305.18290},
      eprint = {2305.18290},
      archivePrefix = {arXiv},
      year = {2023},
      url = {https://arxiv.org/abs/2305.18290}
    }
    """
    fields = {
        "note": f"arXiv:{paper}",
        "eprint": paper,
        "archivePrefix": "arXiv",
        "year": f"20{paper[:2]}",
        "url": f"https://arxiv.org/abs/{paper}",
    }
    return (
        "@misc{arxiv-" + paper + ",\n" + ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items()) + "\n}"
    )


def _names(value: Names) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _part(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = mapping.get(name)
    return value if isinstance(value, Mapping) else {}


def _without_home(text: str) -> str:
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?=[/\\])", "~", text) if len(home) > 1 else text
