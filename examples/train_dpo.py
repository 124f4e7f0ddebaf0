"""DPO in eight lines: from a model's name to a model that prefers the chosen answers."""

from __future__ import annotations

from typing import Any

from burnish import DPOConfig, DPOTrainer


def main(model: str = "smollm2-135m", **options: Any) -> DPOTrainer:
    """Train on a data set that comes with Burnish; `options` go to the config."""
    trainer = DPOTrainer(
        model,
        args=DPOConfig(**{"learning_rate": 5e-6, "max_steps": 30, **options}),
        train_dataset="recipe:spoken-train",
        eval_dataset="recipe:spoken-heldout",
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
