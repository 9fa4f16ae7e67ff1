"""``python -m launch``: the commands, as the ``acontrol`` script has them."""

from launch import cli

if __name__ == "__main__":
    cli.main()
