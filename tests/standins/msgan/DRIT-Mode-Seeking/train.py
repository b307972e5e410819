"""A script with the name that the rules for MSGAN rely on; it trains nothing."""

from options import TrainOptions


def main():
    parser = TrainOptions()
    print(parser.parse())


if __name__ == "__main__":
    main()
