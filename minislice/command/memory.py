"""What becomes of the memory of tensors that are let go, in the whole process: a command's to decide, no library's."""

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # glibc's malloc.h


def return_freed_memory() -> None:
    """Have the C library give freed tensors back to the system from here on.

    glibc keeps blocks of up to 32 MiB for later, in a heap whose holes the next layer's don't quite fit, so that it
    grows with every layer. With a fixed threshold of 1 MiB every tensor above it has pages of its own.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)
