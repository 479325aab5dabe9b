"""The data plane, first half: from a model to a verified, published engine."""
