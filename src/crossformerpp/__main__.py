"""`python -m crossformerpp` is the `crossformer` command; torchrun starts it by this name."""

from crossformerpp.cli import main

if __name__ == "__main__":
    main()
