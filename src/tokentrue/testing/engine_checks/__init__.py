"""The checks of `check_engine`, one coroutine each: it gives its evidence, or raises why the promise is broken."""
