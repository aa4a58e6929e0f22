"""Update modules: the runner, the built-in modules, health checks."""
