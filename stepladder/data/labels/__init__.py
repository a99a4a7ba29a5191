"""From searched trees to training rows: values, pairs, traces, targets."""
