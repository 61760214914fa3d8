"""Laws for every extension point: subclass one in your tests and name your implementation."""
