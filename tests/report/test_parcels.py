"""A parcel as its fields: names, letters, what is derived, and what says nothing."""

from __future__ import annotations

import torch

from burnish.report.parcels import COLUMNS, NAMES, ROWS, Field, fields_of, first_values, kind_of, letters_of, number
from burnish.types import Completion, LossOutput, Mean, RewardTable, Term, TokenStats


def stats() -> TokenStats:
    """The worked example of `TokenStats`: probabilities 0.5 and 0.25, padded to three."""
    logps = torch.tensor([[0.5, 0.25, 1.0]]).log()
    return TokenStats(logps=logps, mask=torch.tensor([[True, True, False]]), extra={"top1": torch.ones(1, 3)})


def by_name(value) -> dict[str, Field]:
    return {field.name: field for field in fields_of(value)}


def test_fields_with_letters_and_what_is_derived():
    found = by_name(stats())
    assert list(found) == ["logps", "mask", "extra['top1']", "lengths", "sequence_sum()", "sequence_mean()"]
    assert (found["logps"].shape, found["logps"].dtype) == ("(N, T) = (1, 3)", "float32")
    assert found["logps"].shown == "[[-0.6931 -1.386 0]]"
    assert found["mask"].shown == "[[1 1 0]]"
    assert found["sequence_sum()"].shown == "[-2.079]"
    assert [name for name, field in found.items() if field.is_derived] == [
        "lengths",
        "sequence_sum()",
        "sequence_mean()",
    ]
    assert found["lengths"].shape == "(N) = (1)"


def test_a_default_says_nothing():
    """`finish_reason` is shown when it is not the usual one."""
    some = {name: torch.ones(2) for name in ("prompt_ids", "token_ids", "logps", "kept_mass", "loss_mask")}
    assert set(by_name(Completion(**some))) == set(some)
    assert by_name(Completion(**some, finish_reason="length"))["finish_reason"].shown == "length"


def test_terms_and_metrics_of_an_output():
    terms = (
        Term(name="a", losses=torch.ones(2), per="pair"),
        Term(name="b", losses=torch.ones(3), per="row", coefficient=0.5),
    )
    found = by_name(LossOutput(terms=terms, metrics={"m": Mean.of(torch.tensor([1.0, 2.0]))}))
    assert list(found) == ["term 'a', per pair", "term 'b', per row, times 0.5", "metrics['m']"]
    assert found["metrics['m']"].shown == "1.5 over 2"
    assert all(field.is_number for field in found.values())
    assert first_values(Mean.of(torch.zeros(0))) == "of nothing"


def test_of_several_the_first_is_shown_and_of_a_tuple_each_kind():
    tables = [RewardTable(rewards=torch.full((1, 1), n), names=("f",), weights=torch.ones(1)) for n in (1.0, 2.0)]
    assert by_name(tables)["rewards"].shown == "[[1]]"
    assert kind_of(tables) == "2 x RewardTable"
    both = (tables, {"row": torch.tensor(4)})
    assert kind_of(both) == "2 x RewardTable, dict"
    assert by_name(both)["['row']"].shown == "4"
    assert (kind_of([]), list(fields_of([]))) == ("nothing", [])


def test_what_is_long_is_cut():
    wide = torch.arange(COLUMNS + 1.0).expand(ROWS + 1, -1)
    assert first_values(wide).count("…") == ROWS + 1
    assert first_values("x" * 500).endswith("… (500 characters)")
    many = {str(n): torch.tensor(n) for n in range(NAMES + 2)}
    assert [field.shown for field in fields_of(many)][-1] == "… 2 more"


def test_plain_lists_are_one_line():
    (field,) = fields_of([{"role": "user"}], "prompts")
    assert (field.name, field.shown, field.is_number) == ("prompts", "{'role': 'user'}", False)
    assert first_values([True, False] * 5) == "[1 0 1 0 1 0 1 0 …]"
    assert [field.name for field in fields_of(torch.zeros(2))] == ["value"]


def test_letters_and_numbers():
    assert letters_of('Float[Tensor, "N T1"] | None') == "N T1"
    assert letters_of("int") == ""
    assert (number(-0.0), number(float("nan")), number(123456.0)) == ("0", "nan", "1.235e+05")
