"""Training of fusers: both models frozen, the receiver answers from what the fuser made of the sender's columns."""
