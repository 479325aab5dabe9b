"""The contract that the operator, the builder and the server share."""

__version__ = "0.1.0"
