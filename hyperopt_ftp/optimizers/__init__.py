"""Pure optimizers and combinators, one file each; here is what an optimizer of one's own is made of."""

from ..hparams import Domain as Domain
from ..hparams import to_tensors as to_tensors
from .arithmetic import safe_sqrt as safe_sqrt
from .by_rule import by_rule as by_rule
from .leafwise import leafwise as leafwise
from .leafwise import no_steps as no_steps
from .leafwise import zeros as zeros
from .wrap import wrapped as wrapped
