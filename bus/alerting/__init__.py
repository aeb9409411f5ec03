"""When a rig needs a person: what is looked for (`rules`), in what the rig says (`watching`), and what becomes of it (`core`).

All of it is pure and needs the standard library only: the bridge judges with it, and so does `rigbus notify` on a machine
that has nothing but the shared folder.
"""
