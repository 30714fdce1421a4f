"""A generator learns to continue histories: the loop, its checkpoints, the train stage."""
