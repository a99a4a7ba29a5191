"""Grading of final answers: reading, comparing, and a killable process for the algebra."""
