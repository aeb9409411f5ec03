"""OpenAI Batch files: a line becomes a task or an error, a task's end becomes a line of the output. Pure.

`lines` cuts bytes into lines of bounded size, `requests` reads them, `answers` writes the output's lines, `books` knows
which are written, `names` says which files of a folder belong together, and when one is to be taken in. Nothing here
knows of a shared folder or of HTTP: `bridge/folder/batchfiles` is the door for files.
"""
