"""The lecture's figures: each module's `draw` returns a matplotlib figure and the numbers behind it."""
