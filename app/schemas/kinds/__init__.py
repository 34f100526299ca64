"""One module a kind: its parameters, its metrics, and `KIND`. The registry finds them by walking this package."""
