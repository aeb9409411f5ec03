"""Shapes of the OpenAI and Ollama HTTP APIs as payloads of our tasks, and back. Pure."""
