"""The shared folder: the bridge's process, and a room (a subpackage) for each thing it does there.

A room imports those that stand above it here, and none below (tests/test_layers.py):

- `share`: the folder as an unreliable thing: helper processes, and the port through which all others ask.
- `loop`: what work runs on: the clock, flows that wait in the middle, questions to the broker.
- `contract`: the files' names and contents, and who may write which. Pure.
- `logs`: the files that only grow: decisions, events of batches, samples, copies of tasks' logs.
- `mirror`: outwards: the broker's state drawn into the folder, and compared with it.
- `alerts`: what is wrong with the rig, as files of ``alerts/``.
- `intake`: inwards: drops and request files become batches, each exactly once, each with a receipt.
- `queue`: the door ``tasks/queue``.
- `control`: commands by files: edits of the mirror's files, and ``signals/``.
- `escalations`: questions to people, and their answers.
- `batchfiles`: the door for OpenAI Batch files.
- `rebuilding`: a folder whose rig is gone: a new state from it, or taking it over.

Here: `service` (the process and its loop), `doors` (how it makes the doors beside the inbox), `seat` (one bridge a rig).

Only `share.helper` and what it imports ever touch the folder, in processes of their own. Work that waits for the folder or the
broker is a generator that `loop.flows` runs, so that its steps stand in the order in which they happen. In a room `core` and
the modules that call themselves pure decide; the others do.
"""
