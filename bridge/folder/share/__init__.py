"""The shared folder as an unreliable thing: two helper processes that touch it, and the port through which all others ask.

`helper` and what it imports (`share`, `asides`, `beneath`, `copies`, `frames`, `newcomers`, `owner`, `ops`, `seal`) import
nothing outside of this room: a helper is started by its path, and sees this folder and the standard library.
"""
