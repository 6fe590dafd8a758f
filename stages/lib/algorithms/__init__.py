"""How a policy is trained, one file an algorithm: a class of its knobs, and `train`."""
