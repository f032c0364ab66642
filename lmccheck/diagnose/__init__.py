"""Constants of the theory, Jacobians and noise profiles: measured when asked for; they feed no verdict."""
