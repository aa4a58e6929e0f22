"""``python -m driftseed`` is ``driftseed``."""

from driftseed.cli.main import main

if __name__ == "__main__":
    main()
