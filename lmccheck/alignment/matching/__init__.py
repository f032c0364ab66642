"""What methods share: similarities, assignments, and steps of reassignment on a permutation spec."""
