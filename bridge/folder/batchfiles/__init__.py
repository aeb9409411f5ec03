"""The door for OpenAI Batch files; the bytes are read and written by `bridge/batchfile`."""
