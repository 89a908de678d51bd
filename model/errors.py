"""Every error Ingot raises on purpose. A message says what, where, the value, and what to do next.

IngotError
├── TransientError            may succeed when tried again: tasks retry it with back-off
│   ├── NetworkError          reset, time-out, 429, 503, a short body
│   ├── ServiceError          Prefect or MLflow does not answer
│   └── RankError             a training rank or a worker process died
└── FatalError                a mistake or damage: never retried
    ├── ConfigError           an unknown field, a value out of bounds, settings that contradict each other
    ├── InputError            a file or record that cannot be what it is said to be
    │   └── NotFoundError     an address, a snapshot or a URL (404) that does not exist
    ├── StoreError            a manifest, an address or a version that contradicts another
    │   ├── DamageError       a file that differs from what its manifest lists (size or sha256)
    │   └── SpaceError        not enough room on the disk
    ├── BooksError            kept + rejected differs from seen
    ├── EmptyError            a stage has nothing left to work on
    ├── RemovalError          a stage would remove more of a source than its guardrail allows
    ├── ShardError            .bin and .idx disagree, or are not of this format
    ├── JudgeError            a trained quality model that is worse than the recipe allows
    ├── TokenizerError        a tokenizer that does not fit the corpus or the model
    ├── CheckpointError       no usable checkpoint, or one of another run
    ├── NonFiniteError        the loss became NaN or infinite
    ├── ParityError           an export answers otherwise than the model it was made of
    └── RoomError             a model, batch or length that memory cannot hold
"""


class IngotError(Exception):
    """Root of all errors raised on purpose."""


class TransientError(IngotError):
    """May succeed when tried again. `retry_after` is the wait in seconds that the other side asked for, if it did."""

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class NetworkError(TransientError):
    """The network or the other host failed for now."""


class ServiceError(TransientError):
    """A service of ours (Prefect, MLflow) does not answer."""


class RankError(TransientError):
    """A process of a stage died; the stage resumes from what is complete."""


class FatalError(IngotError):
    """A mistake or damage that trying again cannot mend."""


class ConfigError(FatalError):
    """A field or a value of a recipe is wrong."""


class InputError(FatalError):
    """An input file or record is not what it is said to be."""


class NotFoundError(InputError):
    """What was asked for does not exist."""


class StoreError(FatalError):
    """The store holds something that contradicts what was asked."""


class DamageError(StoreError):
    """A file differs from what its manifest lists."""


class SpaceError(StoreError):
    """The disk has too little room."""


class BooksError(FatalError):
    """Kept and rejected do not add up to what was seen."""


class EmptyError(FatalError):
    """A stage has nothing left to work on."""


class RemovalError(FatalError):
    """A stage would remove more of a source than its guardrail allows."""


class ShardError(FatalError):
    """A shard is not readable as the format it claims."""


class JudgeError(FatalError):
    """A trained judge of texts is worse than the recipe allows."""


class TokenizerError(FatalError):
    """A tokenizer does not fit the corpus or the model."""


class CheckpointError(FatalError):
    """A checkpoint is missing, torn or of another run."""


class NonFiniteError(FatalError):
    """The loss or the gradient norm became NaN or infinite."""


class ParityError(FatalError):
    """An export answers otherwise than the model it was made of."""


class RoomError(FatalError):
    """Memory cannot hold the model, the batch or the length."""
