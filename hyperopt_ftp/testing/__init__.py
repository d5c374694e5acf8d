"""For tests of one's own optimizer: what all of them promise, and in ``strategies`` random ones and their inputs."""

from .checks import CHECKS as CHECKS
from .checks import CLOSE as CLOSE
from .checks import central_differences as central_differences
from .checks import check_optimizer as check_optimizer
from .checks import largest_difference as largest_difference
from .checks import pure_update as pure_update
from .checks import same as same
from .checks import small_batches as small_batches
from .checks import small_loss as small_loss
from .checks import small_params as small_params
from .checks import small_training as small_training
