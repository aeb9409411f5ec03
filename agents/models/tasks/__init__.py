"""What the task types of models need beside a model: schemas, answers, files that are read and kept."""
