"""Many files as a job: which files (`sources`), what is known of them (`job`, `job_log`), how it runs (`copy`)."""
