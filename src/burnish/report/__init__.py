"""Reports: what a run shows; they only read."""
