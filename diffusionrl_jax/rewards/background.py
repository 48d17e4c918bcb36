"""Makes calls in threads that can be given up."""

import concurrent.futures
import threading
from collections.abc import Callable


def in_background(function: Callable, *arguments) -> concurrent.futures.Future:
    """Calls a function in a thread of its own, which does not keep the program from ending.

    Returns:
      A future of the function's result or error.
    """
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
