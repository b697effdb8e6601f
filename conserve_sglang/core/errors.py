"""The exceptions of this package, in one tree.

ConserveError
├── ConfigError            a file or option is wrong: say which, where, and what to do
│   ├── TierMapError       with the file and the path of the field inside it
│   ├── TraceError         a file of conversations as a whole cannot be read
│   │   └── NotThisFormat  it is in no format known, or not in the one named
│   ├── PlanError          what is to be planned is wrong, or does not fit together
│   └── ProfileError       a profile of a GPU cannot be read, or lacks what was asked
│       └── OutsideProfile what was asked lies beyond its points
├── WorkerError            an SGLang server did not do what was asked
│   ├── Unreachable        no connection, or the connection broke
│   ├── TimedOut           no answer within the time allowed
│   └── NotCapable         it answers, but cannot serve the role it was given
├── MeterError             energy cannot be read on this machine, or of this device
├── CapsError              a power cap or clock cannot be set, or put back
│   └── CapsNotPermitted   the driver does not let this process set any
├── LaunchError            a deployment could not be started or kept up
└── PluginError            the plugin refuses to serve inside this SGLang
    ├── UnsupportedSglang  no manifest for this version, or its source differs from the manifest
    └── HookMissing        a hook was registered but is not in force

A turn that cannot be served is not an exception: it is a `RejectTurn` command with a reason.
"""


def clause(error: object) -> str:
    """What an error says, to stand inside a sentence: without the full stop at its end; the name of
    its class if it says nothing."""
    return str(error).rstrip().removesuffix(".") or type(error).__name__


class ConserveError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(ConserveError):
    """A file, flag or environment variable is wrong."""


class TierMapError(ConfigError):
    """A tier map, or its key file, is wrong; the message names the file and the field."""


class TraceError(ConfigError):
    """A file of conversations as a whole cannot be read; a bad line is not an error."""


class NotThisFormat(TraceError):
    """A file of conversations is in no format known here, or not in the one that was named."""


class PlanError(ConfigError):
    """An inventory or workload file is wrong, or they and the profiles do not fit together."""


class ProfileError(ConfigError):
    """A profile's file is wrong, there is no such profile, or it lacks what was asked."""


class OutsideProfile(ProfileError):
    """A profile was asked beyond its points; it does not extrapolate unless told to."""


class WorkerError(ConserveError):
    """An SGLang server did not do what was asked."""


class Unreachable(WorkerError):
    """No connection to the worker, or it broke before the answer was whole."""


class TimedOut(WorkerError):
    """The worker did not answer within the time allowed."""


class NotCapable(WorkerError):
    """The worker answers but cannot serve the role it was given."""


class MeterError(ConserveError):
    """Energy cannot be read: no bindings, no driver, no such device, a bad recording."""


class WrongMeter(MeterError, ConfigError):
    """A meter was asked for that there is not, or without what it needs."""


class CapsError(ConserveError):
    """A power cap or clock is refused, cannot be set, or cannot be put back."""


class CapsNotPermitted(CapsError):
    """The driver does not let this process set power limits and clocks."""


class LaunchError(ConserveError):
    """A deployment could not be started or kept up."""


class PluginError(ConserveError):
    """The plugin refuses to serve inside this SGLang."""


class UnsupportedSglang(PluginError):
    """No manifest fits the installed SGLang."""


class HookMissing(PluginError):
    """A hook was registered but is not in force."""
