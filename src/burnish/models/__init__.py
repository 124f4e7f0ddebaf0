"""Model rooms: loading, the one forward, the tiled head, references."""
