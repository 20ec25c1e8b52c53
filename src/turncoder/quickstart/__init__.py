"""The whole path on this machine: text, a decoder, its turn, and what each step gave."""

from turncoder.quickstart.tour import Sizes, run

__all__ = ["Sizes", "run"]
