"""A run's results, for people: a table on the terminal and one self-contained HTML page."""
