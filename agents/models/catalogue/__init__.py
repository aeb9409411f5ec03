"""The models that a rig may serve: configured, read from their files, remembered, opened."""
