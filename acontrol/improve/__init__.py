"""Draw what a detector misses, and see whether it then finds more."""
