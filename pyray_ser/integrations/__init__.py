"""Support for packages that a program uses explicitly. Each module imports the package that it is named after."""

__all__: list[str] = []
