"""The scheduler that serves, under an injected clock: how policies fare on load made to measure."""
