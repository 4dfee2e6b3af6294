"""The checkpoint of one upload: records, the journal file that holds them, and the state that they fold into.

Keeper of `fsync` and `flock`. Knows the format of JOURNAL.md; does not know the service, the file's bytes, processes
or time. Runs in the coordinator, and in commands that read journals.
"""
