"""What generated tokens cost: money from a rate, and a drive's life from what is written to it."""

from flexref.machine.curves import check_number

TOKENS_PER_PRICE = 1e6
"""Prices are those of a million generated tokens."""

SECONDS_PER_HOUR, HOURS_PER_DAY = 3600.0, 24.0

TERABYTE = 1e12
"""As drives are rated: TBW counts decimal terabytes."""


def cost_per_million_tokens(tokens_per_s: float, price_per_hour: float) -> float:
    """Price of a million generated tokens, in the currency of `price_per_hour`; `PolicyError` for what is no price."""
    check_number("tokens per second", tokens_per_s, above=True)
    check_number("price per hour", price_per_hour)
    return TOKENS_PER_PRICE / tokens_per_s / SECONDS_PER_HOUR * price_per_hour


def price_per_hour_of_power(watts: float, price_per_kwh: float) -> float:
    """Price of an hour at so many watts."""
    check_number("watts", watts)
    check_number("price per kWh", price_per_kwh)
    return watts / 1000 * price_per_kwh


def written_bytes_per_million_tokens(written_bytes: float, generated_tokens: int) -> float:
    """Bytes that go to disk for a million generated tokens, from those of a job."""
    check_number("generated tokens", generated_tokens, above=True)
    return check_number("written bytes", written_bytes) / generated_tokens * TOKENS_PER_PRICE


def disk_life_days(written_bytes_per_million: float, tokens_per_s: float, rated_terabytes: float) -> float | None:
    """Days until a drive rated for so many terabytes written (TBW) has had them, at this rate without a pause.

    None if nothing is written.
    """
    check_number("a drive's rated terabytes written", rated_terabytes, above=True)
    if not written_bytes_per_million:
        return None
    bytes_per_s = written_bytes_per_million / TOKENS_PER_PRICE * tokens_per_s
    return rated_terabytes * TERABYTE / bytes_per_s / SECONDS_PER_HOUR / HOURS_PER_DAY
