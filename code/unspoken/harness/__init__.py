"""Other people's evaluation harnesses, run on a pair of agents and a channel between them."""
