"""What of a model fits a machine: weights, caches and agents in bytes, by arithmetic alone. Nothing is loaded."""
