"""Builders of the objects that an engine owns. Pure: one file a kind, each returns a dict."""
