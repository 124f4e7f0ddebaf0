"""What the short trainings of the tests have in common: those of the contract of trainers, with smaller steps."""

from burnish.testing.trials import SETTINGS

SHORT = {**SETTINGS, "learning_rate": 1e-3}
