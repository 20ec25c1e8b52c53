"""From decoder to encoder in one command, with every rung measured."""
