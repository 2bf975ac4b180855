"""`python -m wsl`: the command line, where the command `wsl` is not on the path."""

from wsl.cli import main

if __name__ == "__main__":
    main()
