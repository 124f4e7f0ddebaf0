"""Answers to prompts: the protocol of generators, and the engine that samples from the model in this process."""
