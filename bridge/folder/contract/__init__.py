"""The file contract: what the files of the folder are called, what stands in them, and who may write which. Pure."""
