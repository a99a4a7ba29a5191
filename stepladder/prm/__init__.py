"""Process reward models: what they are (specs), step scores (scorer), losses and training."""
