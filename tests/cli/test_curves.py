"""Curves, dot by dot."""

import math

import pytest

from iisft.cli.figures import curve, downsample

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        (
            [1, 2, 3, 4],
            [
                "       4           ⢀⡠⠤⠒⠉",
                "             ⢀⣀⠤⠔⠒⠉⠁    ",
                "       1 ⣀⠤⠒⠊⠁          ",
            ],
        ),
        (
            [1.5] * 3,
            [
                "     1.5                ",
                "         ⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤",
                "                        ",
            ],
        ),
        (
            [2.0],
            [
                "       2                ",
                "         ⠄              ",
                "                        ",
            ],
        ),
        (
            [3, NAN, INF, 1, 2],
            [
                "       3 ⠁              ",
                "                      ⢀⡠",
                "       1            ⡠⠔⠁ ",
            ],
        ),
        ([], [" " * 24] * 3),
        ([NAN, NAN, -INF], [" " * 24] * 3),
    ],
)
def test_small_curves(values: list[float], drawn: list[str]) -> None:
    assert curve(values, 24, 3) == drawn


def test_one_peak_among_thousands_of_steps_is_seen() -> None:
    values = [1.0] * 5000
    values[2500] = 9.0
    assert curve(values, 24, 3) == [
        "       9        ⢸       ",
        "                ⢸⡀      ",
        "       1 ⣀⣀⣀⣀⣀⣀⣀⣸⣇⣀⣀⣀⣀⣀⣀",
    ]


@pytest.mark.parametrize(
    "values",
    [
        [-1e308, 1.7e308],
        [0.0, 5e-324],
        [-1.23456e-100, 1.23456e-101],
        [NAN, 1e300, NAN],
        [1, 10**15],
    ],
)
@pytest.mark.parametrize(("width", "height"), [(10, 2), (33, 7)])
def test_any_numbers_fill_just_the_room_they_have(
    values: list[float], width: int, height: int
) -> None:
    drawn = curve(values, width, height)
    assert [len(line) for line in drawn] == [width] * height
    assert "".join(drawn).strip()


@pytest.mark.parametrize(("width", "height"), [(9, 5), (40, 1), (0, 0)])
def test_no_room(width: int, height: int) -> None:
    with pytest.raises(ValueError, match="a curve needs 10 x 2 characters"):
        curve([1.0], width, height)


def test_downsampling_keeps_the_extremes_of_each_share() -> None:
    assert downsample([1, 5, NAN, 2, NAN, NAN, 7, 8, 0, 3], 5) == [
        (1, 5),
        (2, 2),
        None,
        (7, 8),
        (0, 3),
    ]
    assert downsample([1, NAN, 3], 5) == [(1, 1), None, (3, 3)]
    assert downsample([], 5) == []
