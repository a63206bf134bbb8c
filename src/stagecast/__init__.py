"""Stage model files onto workers, load them there, and show every operation the same on every replica."""
