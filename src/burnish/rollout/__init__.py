"""A round of rollouts: the only room that knows generate, score, re-score and credit."""
