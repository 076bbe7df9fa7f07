"""Performance figures of this machine, each a ratio of things measured in one run."""
