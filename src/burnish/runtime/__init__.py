"""Runtime rooms: processes, checkpoints, guards, the run directory."""
