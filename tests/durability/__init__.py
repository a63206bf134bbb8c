"""Every step of what writes models to a disk, killed and cut off from its power: ``python -m tests.durability``."""
