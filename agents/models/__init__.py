"""Language models: the protocol, llama.cpp in a child process, any OpenAI-compatible URL, and one that answers from a script.

`protocol` says what a model is to the rest of rigbus, `requests` what it can be asked. `host` is one in a process of its own:
`keeper` is the thread that keeps it (`model_process` is the process to it, `open_requests` who waits for what,
`crash_budget` when it gives up), `child` the process, `engine` what runs in it (`batching` decides the steps, `sampling`
the tokens, `embedding` the vectors; `llama` and `context` are llama.cpp). `scripted` is for tests.

`remote` is one behind an OpenAI-compatible URL (`remote_generation` a request to it, `httpcall` its connection).

`grammar` turns a JSON schema into llama.cpp's rules: `schema_parts` reads the schema, `grammar_simple`, `grammar_values`
and `grammar_pattern` (by `grammar_regex`) make the rules of strings and numbers, `gbnf` writes them.

`endpoint` serves a model, whichever it is, to the commands of its worker: `loopback` and `exchange` are its HTTP, `grants`
say who may ask.

`answers` makes questions of the task types parse and decide and reads their answers, which `validation` checks by a schema that
`schemas` has read; `reading` and `keeping` are a task's files.
"""
