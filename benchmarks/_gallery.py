"""The algorithms of examples/algorithms: what each is called, what measures it, and what TRL has in its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ALGORITHMS = Path(__file__).resolve().parents[1] / "examples" / "algorithms"
PAIRS, SUMS = "rewards/accuracies", "accuracy"  # held-out pairs in their right order; held-out sums that are right


@dataclass(frozen=True)
class Peer:
    """What a user of TRL 1.16 reads, or writes anew, to have or to change the algorithm.

    Attributes:
        members: (file of the package, class or method); their lines are added.
        note: how they come in.
        is_shipped: TRL has the algorithm; else the members are those that a subclass has to write anew.
    """

    members: tuple[tuple[str, str], ...]
    note: str
    is_shipped: bool


@dataclass(frozen=True)
class Algorithm:
    """A row of the gallery.

    Attributes:
        name: of its files.
        title: for people.
        measure: of the held-out rows, without `eval_`.
        peer: in TRL 1.16.
        teacher: the algorithm whose trained model is its `ref_model`, or None.
    """

    name: str
    title: str
    measure: str
    peer: Peer
    teacher: str | None = None

    @property
    def source(self) -> Path:
        """What a user writes."""
        return ALGORITHMS / f"{self.name}.py"

    @property
    def run_file(self) -> Path:
        """How it is trained."""
        return ALGORITHMS / f"{self.name}.yaml"


def _shipped(directory: str, stem: str, name: str, note: str = "its own trainer and configuration") -> Peer:
    files = ((f"{directory}/{stem}_trainer.py", f"{name}Trainer"), (f"{directory}/{stem}_config.py", f"{name}Config"))
    return Peer(files, note, is_shipped=True)


def _overridden(note: str, *members: tuple[str, str]) -> Peer:
    return Peer(members, note, is_shipped=False)


_GRPO, _ONLINE_DPO = "trainer/grpo_trainer.py", "experimental/online_dpo/online_dpo_trainer.py"
_ROUND = (_GRPO, "GRPOTrainer._generate_and_score_completions")

GALLERY = (
    Algorithm("orpo", "ORPO", PAIRS, _shipped("experimental/orpo", "orpo", "ORPO")),
    Algorithm(
        "simpo",
        "SimPO",
        PAIRS,
        _shipped("experimental/cpo", "cpo", "CPO", "an option of CPO's trainer and configuration"),
    ),
    Algorithm("rloo", "RLOO", SUMS, _shipped("trainer", "rloo", "RLOO")),
    Algorithm(
        "reinforce_pp",
        "REINFORCE++",
        SUMS,
        _overridden("a subclass of GRPOTrainer: advantages are made in the middle of this method", _ROUND),
    ),
    Algorithm("online_dpo", "Online DPO", SUMS, _shipped("experimental/online_dpo", "online_dpo", "OnlineDPO")),
    Algorithm(
        "xpo",
        "XPO",
        SUMS,
        _overridden(
            "a subclass of OnlineDPOTrainer: this method draws, scores and has the loss",
            (_ONLINE_DPO, "OnlineDPOTrainer.training_step"),
        ),
    ),
    Algorithm(
        "best_of_n",
        "Best-of-n distillation",
        SUMS,
        _overridden("a subclass of GRPOTrainer: advantages are made in the middle of this method", _ROUND),
    ),
    Algorithm("gkd", "GKD", SUMS, _shipped("experimental/gkd", "gkd", "GKD"), teacher="rloo"),
    Algorithm(
        "spin",
        "SPIN",
        PAIRS,
        _overridden(
            "a subclass of OnlineDPOTrainer: this method draws both answers, and one has to come from the data",
            (_ONLINE_DPO, "OnlineDPOTrainer.training_step"),
        ),
    ),
    Algorithm(
        "process_reward",
        "Process reward",
        "rewards/number/mean",
        _overridden(
            "a subclass of GRPOTrainer: rewards are one number an answer, and so are advantages",
            (_GRPO, "GRPOTrainer._calculate_rewards"),
            _ROUND,
        ),
    ),
)
