import sys
from pathlib import Path

# Where the modules of the tests and tools are.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
