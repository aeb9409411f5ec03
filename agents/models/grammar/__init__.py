"""A JSON schema as a grammar of llama.cpp: :func:`.schema.to_gbnf` and its parts. Pure."""
