"""What is minimised: which states predict which tokens, and the cross-entropy over a vocabulary."""
