"""What goes wrong with a topic, in words."""

from collections.abc import Sequence
from typing import Any


def explain(error: Any, uri: str, others: Sequence[Any] = ()) -> str:
    """Return what a `KafkaError` means and what to do.

    Args:
        error: What was raised.
        uri: The source as the user wrote it.
        others: What was told on the way; wrong credentials are told, and then something else times out.
    """
    from confluent_kafka import KafkaError as Known

    codes = [error.code(), *(other.code() for other in others)]
    if Known._AUTHENTICATION in codes or Known.SASL_AUTHENTICATION_FAILED in codes:
        return f'"{uri}" refuses the user or password: check sasl.username, and the secret in sasl.password.'
    if Known._SSL in codes:
        return f'"{uri}" has a certificate that does not verify: name its authority in ssl.ca.location=….'
    if Known.TOPIC_AUTHORIZATION_FAILED in codes or Known.GROUP_AUTHORIZATION_FAILED in codes:
        return f'"{uri}" may not be read by this user and group: ask for the right to read the topic and the group.'
    if error.code() in (Known._INVALID_ARG, Known._CONFLICT, Known._NOT_IMPLEMENTED):
        return f'"{uri}" has a setting that librdkafka does not take ({_say(error)}): check what follows "?".'
    if error.code() in (Known._UNKNOWN_TOPIC, Known.UNKNOWN_TOPIC_OR_PART, Known._UNKNOWN_PARTITION):
        return f'"{uri}" has lost its topic or a partition while it was read: see that it is there, and run this again.'
    if Known._RESOLVE in codes or error.code() in (Known._TRANSPORT, Known._ALL_BROKERS_DOWN, Known._TIMED_OUT):
        return f'"{uri}" cannot be reached, no broker answers there: check the address, and that the brokers run.'
    return f'"{uri}" cannot be read ({_say(error)}): see the brokers\' logs.'


def explain_lost(uri: str, partition: int, begin: int, first: int, end: int) -> str:
    """Return the sentence on offsets that a partition does not have (any more)."""
    if begin < first:
        return (
            f'Rows of "{uri}" were lost: partition {partition} was read up to offset {begin} and now begins at '
            f"{first}, its retention removed what is between; keep rows longer, and ingest "
            "what is left with `ml ingest --full`."
        )
    return (
        f'Partition {partition} of "{uri}" ends at offset {end}, before offset {begin}, up to which it was read: '
        "the topic was made anew; ingest it whole with `ml ingest --full`."
    )


def say_begun(uri: str, group: str, passed: int) -> str:
    """Return the sentence on a read that begins where the group stands, `passed` offsets after the first."""
    return (
        f'"{uri}" is read from where the group "{group}" stands: {passed:,} earlier messages are passed over; '
        "if they were never ingested here, run `ml ingest --full`, which reads from the start."
    )


def _say(error: Any) -> str:
    return str(error.str()).strip().rstrip(".")
