"""Whose cache is it: signatures of agents in their representations, and the error rates of recognising them."""
