"""``python -m secateur``: the command line."""

from secateur.driver.cli import main

if __name__ == "__main__":
    main()
