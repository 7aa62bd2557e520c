"""The Python part of pickling: entry points, the registry of serializers, and the order in which reducers are tried."""
