"""Retry presets of Prefect tasks: what may succeed when tried again is retried with back-off, a mistake or damage never is.

    @task(name="extract", **COMPUTE)

Prefect caches nothing: whether a stage is complete is decided by its manifest alone.
"""

import time
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from model.errors import TransientError

LONGEST_WAIT = 900.0
"""Most seconds that another side's Retry-After is honoured in one go."""


def transient(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed attempt may be tried again: only a TransientError, or a lost connection, is. Waits as long as the other side asked for."""
    try:
        state.result()
    except (TransientError, ConnectionError, TimeoutError) as error:
        asked = getattr(error, "retry_after", None)
        if asked:
            time.sleep(min(asked, LONGEST_WAIT))
        return True
    except Exception:
        return False
    return False


NETWORK: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": transient,
}
"""Other hosts: 5, 10, 20, 40 s, jittered, after what the host asked for. The download itself has tried each request several times before."""
COMPUTE: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 2,
    "retry_delay_seconds": exponential_backoff(2),
    "retry_condition_fn": transient,
}
"""Our own processes: a dead rank is started again from what is complete."""
