"""The parts of learned residual quantizers: codebooks, assignment, gradients, objectives."""
