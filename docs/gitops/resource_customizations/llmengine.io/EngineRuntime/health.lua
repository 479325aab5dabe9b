-- An EngineRuntime is data, without a status: docs/engineruntime.md
return { status = "Healthy", message = "The runtime can be named by an LLMEngine" }
