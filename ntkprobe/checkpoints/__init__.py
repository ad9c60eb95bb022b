"""Checkpoints of a training run: finding, checking, pinning and loading them.

A checkpoint is a folder that some trainer wrote or is still writing. It is read with suspicion (it
may be half written, deleted or overwritten at any moment, or come from a stranger) and it is never
written to.
"""

from .adapters import adapted as adapted
from .adapters import base_and_adapter as base_and_adapter
from .adapters import base_folder_of as base_folder_of
from .adapters import base_named_by as base_named_by
from .completeness import FileStamp as FileStamp
from .completeness import Marker as Marker
from .completeness import Readiness as Readiness
from .completeness import read_marker as read_marker
from .completeness import readiness as readiness
from .folders import Checkpoint as Checkpoint
from .folders import find_checkpoints as find_checkpoints
from .gguf_files import gguf_file as gguf_file
from .gguf_files import gguf_identity as gguf_identity
from .headers import Incomplete as Incomplete
from .identification import identity as identity
from .identification import named_identity as named_identity
from .identification import settings_digest as settings_digest
from .loaded_identity import loaded_identity as loaded_identity
from .loaded_identity import weights_digest as weights_digest
from .loading import LoadSettings as LoadSettings
from .loading import load_checkpoint as load_checkpoint
from .loading import load_model as load_model
from .loading import load_tokenizer as load_tokenizer
from .pins import pinned as pinned
from .pins import remove_stale_pins as remove_stale_pins
