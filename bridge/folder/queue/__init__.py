"""The door ``tasks/queue``: files of the earlier system's scripts and of people become batches."""
