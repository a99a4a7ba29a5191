"""Data sets from files and hubs: problems, and written solutions with labels."""
