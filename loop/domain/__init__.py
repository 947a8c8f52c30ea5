"""Pure rules: what may happen to money, with no I/O, no clock and no third party."""
