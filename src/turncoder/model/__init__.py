"""Load a decoder, make its attention look both ways, and prove it."""
