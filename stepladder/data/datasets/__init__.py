"""What is read from files and hubs: problems, and written solutions with labels."""
