"""Group means as TensorBoard scalars in OUT/tensorboard/, a folder for each worker."""

import shutil
from pathlib import Path

from ...errors import UserError


class Tensorboard:
    """A writer of event files, begun anew: TensorBoard would show what stands twice as two lines.

    Args:
        folder: the folder of measurements.
        worker: the name of this worker's own folder; TensorBoard allows one writer in each.

    Raises:
        UserError: if the package is not installed.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "--report-to tensorboard needs a package: pip install 'ntkprobe[tensorboard]'"
            ) from error
        place = folder / "tensorboard" / worker
        shutil.rmtree(place, ignore_errors=True)
        self._writer = SummaryWriter(str(place))

    def show(self, step: int, values: dict[str, float]) -> None:
        """Write one scalar for each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
