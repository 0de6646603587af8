"""``python -m comove`` is the ``comove`` command."""

from comove.cli import run

if __name__ == "__main__":
    run()
