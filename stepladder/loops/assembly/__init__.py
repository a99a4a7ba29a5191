"""From configuration to objects."""
