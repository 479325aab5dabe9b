"""The control plane: watches LLMEngines, starts builds, rolls out servers."""
