"""The optimizer, its schedule, and the callbacks of a run."""
