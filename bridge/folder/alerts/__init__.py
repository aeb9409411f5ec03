"""What is wrong with the rig, as files of ``alerts/``."""
