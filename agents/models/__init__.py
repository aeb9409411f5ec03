"""Language models: the protocol, llama.cpp in a child process, and one that answers from a script.

`protocol` says what a model is to the rest of rigbus. `host` is one in a process of its own: `keeper` is the thread that
keeps it, `child` the process, `engine` what runs in it (`batching` decides the steps, `sampling` the tokens, `llama` is
llama.cpp). `scripted` is for tests.
"""
