"""Drop-in ``torch.optim`` classes: the only layer that mutates and picks executions."""

from .ftp_adamw import FTPAdamW as FTPAdamW
from .ftp_sgd import FTPSGD as FTPSGD
from .ftp_wrapper import FTP as FTP
