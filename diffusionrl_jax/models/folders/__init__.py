"""Folders and files of models: found, fetched, read and written."""
