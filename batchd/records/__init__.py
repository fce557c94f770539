"""The values that every room passes around: frozen, without I/O.

Money is in US dollars, times are seconds since the epoch (UTC), durations are
seconds, sizes are bytes, and models are named ``provider/model``.
"""

from batchd.records.hosts import Network
from batchd.records.kept import Kept
from batchd.records.limits import RateLimit
from batchd.records.models import (
    APIS,
    EFFORTS,
    PATHS,
    Answer,
    Endpoint,
    Failure,
    FailureKind,
    Message,
    ModelSetup,
    Purpose,
    Replay,
    Tool,
    ToolCall,
)
from batchd.records.money import (
    STANDARD,
    TIERS,
    Cost,
    Price,
    Rate,
    Spend,
    Usage,
    believable,
    cache_share,
    dearest,
    dollars,
)
from batchd.records.parking import Cause, HoldKey, Parking, Scope, summed
from batchd.records.policy import SHOWABLE, SandboxPolicy
from batchd.records.tasks import (
    Batch,
    ErrorInfo,
    Evaluation,
    FileChanges,
    FileStamp,
    Limits,
    Name,
    Reason,
    Ref,
    Secret,
    Status,
    Task,
)
from batchd.records.triggers import Trigger

__all__ = [
    "APIS",
    "EFFORTS",
    "PATHS",
    "SHOWABLE",
    "STANDARD",
    "TIERS",
    "Answer",
    "Batch",
    "Cause",
    "Cost",
    "Endpoint",
    "ErrorInfo",
    "Evaluation",
    "Failure",
    "FailureKind",
    "FileChanges",
    "FileStamp",
    "HoldKey",
    "Kept",
    "Limits",
    "Message",
    "ModelSetup",
    "Name",
    "Network",
    "Parking",
    "Price",
    "Purpose",
    "Rate",
    "RateLimit",
    "Reason",
    "Ref",
    "Replay",
    "SandboxPolicy",
    "Scope",
    "Secret",
    "Spend",
    "Status",
    "Task",
    "Tool",
    "ToolCall",
    "Trigger",
    "Usage",
    "believable",
    "cache_share",
    "dearest",
    "dollars",
    "summed",
]
