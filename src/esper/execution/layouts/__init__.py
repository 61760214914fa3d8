"""Which axis of a layer's input has examples, time, features, channels."""
