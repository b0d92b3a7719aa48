"""Every error that the product raises on purpose.

PropagateError
├── InputError            something handed to the product cannot be used; the message names it
│   ├── MaskError         a mask, its score or its features
│   ├── ImageError        an image that cannot be read
│   ├── ConfigError       a labeling config that does not fit
│   ├── SettingsError     a setting
│   ├── AnswerError       an annotator's answer that does not fit its page
│   ├── CommandError      a manager's command that cannot be obeyed
│   └── ArtefactError     a folder handed over that is missing, changed or of another kind
├── ServerError           Label Studio did not do what was asked
│   ├── Unreachable       no answer
│   ├── Refused           the token was not accepted
│   ├── NotLabelStudio    something else answers there
│   └── Missing           the thing asked for is not there
├── StoreError            the daemon's own store
└── EngineError           the machines that share the work
"""


class PropagateError(Exception):
    """An error whose message says what was wrong, with which input, and what to do next."""


class InputError(PropagateError):
    """Something handed to the product cannot be used."""


class MaskError(InputError):
    """A mask, its score or its features cannot be used."""


class ImageError(InputError):
    """An image cannot be read."""


class ConfigError(InputError):
    """A labeling config does not fit."""


class SettingsError(InputError):
    """A setting is missing or wrong."""


class AnswerError(InputError):
    """An annotator's answer does not fit its page."""


class CommandError(InputError):
    """A manager's command cannot be obeyed."""


class ArtefactError(InputError):
    """An artefact folder is missing, changed, or of another kind."""


class ServerError(PropagateError):
    """Label Studio did not do what was asked."""


class Unreachable(ServerError):
    """No answer from the server."""


class Refused(ServerError):
    """The token was not accepted."""


class NotLabelStudio(ServerError):
    """Something other than Label Studio answers at the address."""


class Missing(ServerError):
    """The thing asked for is not there."""


class StoreError(PropagateError):
    """The daemon's store cannot be used."""


class EngineError(PropagateError):
    """The machines that share the work did not do it."""
