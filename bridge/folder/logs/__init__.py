"""The files that only grow: the log of decisions, the events of batches, the training samples, copies of tasks' logs."""
