"""The data side: problems, grading, labels made of trees, shards, exports and the figures of an evaluation."""
