"""Update modules that come with the agent. They are programs: ``run.py`` starts them."""
