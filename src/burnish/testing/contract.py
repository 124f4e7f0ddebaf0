"""What a contract is: laws, each tried on cases from the smallest on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from burnish.registry import closest

Subject = TypeVar("Subject")
Case = TypeVar("Case")
RELATIVE, ABSOLUTE = 1e-9, 1e-12  # in float64: rounding of another order of sums


class ContractError(AssertionError):
    """A function breaks a law; the message says which, and on what."""


@dataclass(frozen=True)
class Law(Generic[Subject, Case]):
    """Something that holds for every case.

    Attributes:
        name: in a few words.
        reason: what goes wrong in a run where it does not hold.
        problem: (subject, case) -> what does not hold, or an empty string.
    """

    name: str
    reason: str
    problem: Callable[[Subject, Case], str]


def assert_laws(
    what: str,
    subject: Subject,
    laws: Sequence[Law[Subject, Case]],
    cases: Iterable[Case],
    *,
    show: Callable[[Case], str],
) -> None:
    """Try each law on each case, the smallest first.

    Args:
        what: the function, for the message.
        subject: what the laws are about.
        laws: in the order of their meaning: the first that is broken is reported.
        cases: small ones first.
        show: a case in a few lines.

    Raises:
        ContractError: a law is broken, or the function fails.
    """
    tried = list(cases)
    for law in laws:
        for case in tried:
            try:
                problem = law.problem(subject, case)
            except Exception as error:
                problem = f"it raised {type(error).__name__}: {error}"
                raise ContractError(_message(what, law, problem, show(case))) from error
            if problem:
                raise ContractError(_message(what, law, problem, show(case)))


def chosen_laws(laws: Sequence[Law[Subject, Case]], without: Collection[str]) -> list[Law[Subject, Case]]:
    """All laws but those that are left out by name.

    Raises:
        ValueError: there is no such law.
    """
    names = [law.name for law in laws]
    for name in without:
        if name not in names:
            raise ValueError(f"there is no law {name!r}{closest(name, names) or ';'} known: {', '.join(names)}")
    return [law for law in laws if law.name not in without]


def _message(what: str, law: Law[Any, Any], problem: str, case: str) -> str:
    return f"{what} breaks the law '{law.name}': {problem}\n{law.reason}\nThe smallest case that shows it:\n{case}"


def shown(case: Any) -> str:
    """The tensors of a parcel, one a line."""
    lines: list[str] = []
    for name, value in tensors_of(case).items():
        rounded = value.round(decimals=3) if value.is_floating_point() else value
        lines.append(f"  {name} {tuple(value.shape)} = {rounded.tolist()}")
    return "\n".join(lines)


def tensors_of(case: Any) -> dict[str, Tensor]:
    """The tensors of a parcel by the names of their fields."""
    return {name: value for name, value in vars(case).items() if isinstance(value, Tensor)}


def same(found: Tensor, expected: Tensor) -> bool:
    """Equal up to the rounding of sums in another order."""
    return found.shape == expected.shape and bool(torch.allclose(found, expected, rtol=RELATIVE, atol=ABSOLUTE))


def changed_fields(before: Any, after: Any) -> list[str]:
    """Names of the tensors of a parcel that are no longer what they were."""
    return [name for name, value in tensors_of(before).items() if not torch.equal(value, tensors_of(after)[name])]


def copied(case: Any) -> Any:
    """A parcel of the same values in tensors of its own."""
    return replace(case, **{name: value.clone() for name, value in tensors_of(case).items()})


def taken(case: Any, rows: Tensor) -> Any:
    """Some rows of a parcel whose tensors all have one entry a row."""
    return replace(case, **{name: value[rows] for name, value in tensors_of(case).items()})


def impurity(function: Callable[[Any], Tensor], case: Any, what: str) -> str:
    """What a function changes in its parcel, or that it says something else when it is asked again."""
    own = copied(case)
    first, second = function(own), function(own)
    if changed := changed_fields(case, own):
        return f"it changed {', '.join(changed)} in place"
    return "" if torch.equal(first, second) else f"two calls on the same {what} gave different results"


def wrong_gradient(function: Callable[..., Tensor], *operands: Tensor) -> str:
    """How the gradient of a function differs from the slope of its value, in float64."""
    try:
        torch.autograd.gradcheck(function, tuple(operand.clone().requires_grad_() for operand in operands))
    except GradcheckError as error:
        return f"the gradient is not that of the value: {str(error).splitlines()[0]}"
    return ""


def not_finite(values: Tensor) -> int | None:
    """The first row that holds a number that is not finite, or None."""
    rows = (~values.isfinite()).view(len(values), -1).any(1).nonzero()
    return int(rows[0]) if len(rows) else None
