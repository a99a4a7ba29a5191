"""The data side: problems, grading, labels made from trees, shards, exports, and the metrics of an evaluation."""
