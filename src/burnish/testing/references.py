"""The contract of references: made of a policy, asked about parcels, and followed by a policy that learns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from burnish.data.collate import PreferenceCollator
from burnish.testing.contract import assert_laws, chosen_laws, shown
from burnish.testing.reference_laws import LAWS, Source
from burnish.testing.tiny import PAD, dropping_model

if TYPE_CHECKING:
    from burnish.models.reference import Reference
    from burnish.types import PreferenceBatch

SIZES = (1, 2, 3)


def assert_reference_contract(
    make_reference: Callable[[Any], Reference],
    *,
    make_model: Callable[..., Any] = dropping_model,
    without: Collection[str] = (),
) -> None:
    """A reference keeps the laws of references.

    It says a log-prob for each trained token, without gradient, whatever is in the padding, beside a row or before it;
    these are of one distribution over the vocabulary, also at another temperature and as a teacher's; it reads and
    changes nothing of the policy that is trained, nor the random numbers; its fingerprint is that of what the run began
    with; and if it moves after the policy's steps, all that moves is in its `state_dict`.

    Laws about tokens, temperature and teacher are tried where the reference has such: log-probs of a data set do not.

    Args:
        make_reference: (policy) -> the reference. Called anew for each law; the policy has `install_forward`.
        make_model: (seed, dtype) -> a policy; a tiny random one with dropout if not given.
        without: names of laws that the reference breaks on purpose.

    Raises:
        ContractError: a law is broken; the message says which, and shows the smallest case.
        ValueError: an unknown law.

    >>> from burnish.models.reference import frozen_copy
    >>> assert_reference_contract(frozen_copy)
    """
    source = Source(make_model, make_reference)
    name = f"the reference {type(source.begin().reference).__name__}"
    assert_laws(name, source, chosen_laws(LAWS, without), make_parcels(), show=shown)


def make_parcels() -> Iterator[PreferenceBatch]:
    """One pair, and several of different lengths; some tokens in the middle are not trained; sums of a data set."""
    collate = PreferenceCollator(PAD)
    for size in SIZES:
        yield collate([_row(place) for place in range(size)])


def _row(place: int) -> dict[str, Any]:
    """A prompt of 1 to 3 tokens, answers of 2 to 6."""
    lengths = {"chosen": 3 + place, "rejected": 4 - place}
    ids = {name: [2 + (place + 5 * step + length) % 13 for step in range(length)] for name, length in lengths.items()}
    row: dict[str, Any] = {"row_id": place, "prompt_input_ids": [3 + place] * (1 + place % 3)}
    for name, tokens in ids.items():
        row[f"{name}_input_ids"] = tokens
        row[f"{name}_loss_mask"] = [step != 1 for step in range(len(tokens))]
        row[f"ref_{name}_logps"] = -1.5 * len(tokens) - place
    return row
