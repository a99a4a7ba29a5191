"""A run on disk and its processes: directory, workers, launched trainings, progress."""
