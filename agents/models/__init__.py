"""Language models: the protocol, llama.cpp in a child process, any OpenAI-compatible URL, and one that answers from a script.

`protocol` says what a model is to the rest of rigbus, `requests` what it can be asked. Behind the protocol are

- `host`: llama.cpp in a process of its own. `keeper` is the thread that keeps it (`process` is the process to it,
  `open_requests` who waits for what, `crash_budget` when it gives up); what runs in the process is `engine` (`child` its
  entry, `batching` decides the steps, `sampling` the tokens, `embedding` the vectors; `llama` and `context` are llama.cpp);
- `remote`: a server behind an OpenAI-compatible URL (`generation` a request to it, `httpcall` its connection);
- `scripted`: a script, for tests.

`catalogue` has the models that a rig may serve, `gguf` what their files say and how much memory they take; `seat` is where a
worker holds one of them (`card_meter` measures what that takes of its cards, by `card_memory`). `endpoint` serves that one to
the worker's commands (`loopback` and `exchange` are its HTTP, `grants` say who may ask, `lending` gives an attempt its way in).

`tasks` makes questions of the task types and reads their answers (`schemas`, `answers`, `validation`), and their files
(`reading`, `keeping`). `grammar` turns a JSON schema into llama.cpp's rules: `parts` reads the schema, `simple`, `values` and
`pattern` (by `regex`) make the rules of strings and numbers, `gbnf` writes them.
"""
