"""What a trainer on judged answers logs about a micro-batch, as means that can still be added up."""

from __future__ import annotations

from burnish.types import JudgedLogps, Mean, PreferenceBatch, TokenStats

NEEDS = frozenset({"entropy", "mean_logit"})


def judged_metrics(judged: JudgedLogps, stats: TokenStats, batch: PreferenceBatch, *, beta: float) -> dict[str, Mean]:
    """Rewards, log-probs and logits of desirable answers (`chosen`) and of others (`rejected`), entropy, truncation.

    `rewards/margins` is made of the first two when they are read (`burnish.metrics`).
    """
    rows, tokens = batch.unit_weights("row"), batch.unit_weights("token")  # (N,), (N, T)
    rewards = beta * judged.logratio.detach()
    metrics = {"entropy": Mean.of(stats.required_entropy, weight=tokens)}
    if "truncated" in batch.columns:
        metrics["truncated"] = Mean.of(batch.columns["truncated"], weight=rows)
    if judged.kl is not None:
        metrics["kl"] = Mean.of(judged.kl, weight=rows)
    for name, where in {"chosen": judged.is_desirable, "rejected": ~judged.is_desirable}.items():
        metrics |= {
            f"rewards/{name}": Mean.of(rewards, weight=rows * where),
            f"logps/{name}": Mean.of(judged.logps, weight=rows * where),
            f"logits/{name}": Mean.of(stats.extra["mean_logit"], weight=tokens * where[:, None]),
        }
    return metrics
