"""Proximal policy optimisation on one base: rollouts, advantages, losses, control, and the loop."""
