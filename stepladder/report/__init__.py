"""What a run came to, for people: a table on the terminal and one self-contained HTML page."""
