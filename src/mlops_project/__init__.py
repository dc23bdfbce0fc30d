import sys

if sys.platform == "win32":  # which has no fcntl, no SIGUSR1 and no pwrite
    sys.exit("error: this program needs Linux or macOS; on Windows, run it within WSL")
