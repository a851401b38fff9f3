"""What a trainer handed in, held against its order: fit to be sent, or a failure in words."""

from __future__ import annotations

from dataclasses import replace

from fedtrain.core.messages import Evaluation, Failure
from fedtrain.core.orders import Order, OrderKind, Result
from fedtrain.errors import BadMailbox
from fedtrain.wire.status import printable

REASON_CHARACTERS_MAX = 1000
"""Of a failure's reason that travels: a sentence or two."""

_FILE = {OrderKind.SEED: "model.bin", OrderKind.TRAIN: "update.bin", OrderKind.EVALUATE: ""}


def judge_result(order: Order, result: Result) -> Result:
    """The result as it is worth journaling; `BadMailbox` if it cannot be an answer to the order.

    A failure keeps its reason and loses everything else, so that nothing of it is ever sent.
    """
    if result.failure:
        return Result(order=order.id, failure=reason_text(result.failure), seconds=result.seconds)
    if result.file != _FILE[order.kind]:
        raise BadMailbox(
            f"the result of {order.id} holds {result.file or 'no file'}, an order to {order.kind} is "
            f"answered with {_FILE[order.kind] or 'none'}"
        )
    if order.kind is OrderKind.SEED and not result.layout:
        raise BadMailbox(f"the initial weights of {order.id} came without their layout")
    if order.kind is OrderKind.EVALUATE and result.eval_loss is None:
        raise BadMailbox(f"the evaluation of {order.id} came without a loss")
    if result.norm < 0 or result.seconds < 0:
        raise BadMailbox(f"the result of {order.id} has a negative norm or duration")
    return replace(result, notes=tuple(reason_text(note) for note in result.notes[:16]))


def report(result: Result) -> Failure | Evaluation:
    """The message for an answer that has no file."""
    if result.failure or result.eval_loss is None:
        return Failure(result.order, result.failure or "no loss was measured")
    return Evaluation(result.order, result.eval_loss, result.eval_count)


def reason_text(text: str) -> str:
    """One line without control characters, short enough to travel."""
    return printable(text)[:REASON_CHARACTERS_MAX]
