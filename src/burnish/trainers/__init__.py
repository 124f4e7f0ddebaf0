"""Trainers: they connect the rooms."""
