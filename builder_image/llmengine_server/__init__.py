"""The data plane, second half: fetches an engine and serves it from Triton."""
