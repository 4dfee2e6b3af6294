"""The file to upload: who it is, how it is cut, and windows onto its bytes.

Keeper of `mmap`. Knows files and offsets; does not know the service, journals or processes.
"""
