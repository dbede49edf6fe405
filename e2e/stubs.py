"""Makes Python modules of the contract, for the tests."""

import sys
from pathlib import Path
from types import SimpleNamespace

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent.parent / "proto"


def generate(out: Path) -> SimpleNamespace:
    """Everything that protoc makes of dinle/v1, as one namespace; the files go to `out`."""
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("dinle/v1/*.proto"))
    well_known = Path(protoc.__file__).with_name("_proto")
    includes = [f"-I{PROTO}", f"-I{well_known}"]
    status = protoc.main(["protoc", *includes, f"--python_out={out}", f"--grpc_python_out={out}", *files])
    assert status == 0, "protoc does not take the contract; see its messages above"
    sys.path.insert(0, str(out))
    from dinle.v1 import event_pb2, observer_pb2, observer_pb2_grpc, workload_pb2

    names = {}
    for module in (event_pb2, observer_pb2, observer_pb2_grpc, workload_pb2):
        names |= vars(module)
    return SimpleNamespace(**names)
