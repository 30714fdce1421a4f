"""`python -m tigerrec` is the command `tigerrec`, also for torchrun."""

from tigerrec.cli import main

if __name__ == "__main__":
    main()
