"""A worker's model as an OpenAI-compatible server on 127.0.0.1, for the commands of that worker."""
