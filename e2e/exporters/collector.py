"""A collector that speaks OTLP over gRPC and HTTP, made of OpenTelemetry's own Python protos."""

import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc


def any_value(value):
    """A value as Python has it."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [any_value(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return attributes(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)


def attributes(pairs) -> dict:
    found = {pair.key: any_value(pair.value) for pair in pairs}
    assert len(found) == len(pairs), "an attribute is there twice"
    return found


class Collector:
    """Keeps what it takes. `answers` are given to the next requests in the place of an OK: gRPC codes, or statuses of HTTP."""

    def __init__(self):
        self.logs, self.metrics, self.headers, self.answers = [], [], [], []
        self.lock = threading.Lock()

    def took(self, kept: list, request, headers: dict):
        """An answer that is no OK, or None."""
        with self.lock:
            self.headers.append(headers)
            if self.answers:
                return self.answers.pop(0)
            kept.append(request)

    def records(self):
        """Every record with its resource's attributes."""
        with self.lock:
            return [
                (attributes(logs.resource.attributes), record)
                for request in self.logs
                for logs in request.resource_logs
                for scope in logs.scope_logs
                for record in scope.log_records
            ]

    def points(self) -> dict:
        """The last value of each point: by the metric's name, the pod and its attributes."""
        found = {}
        with self.lock:
            for request in self.metrics:
                for resource in request.resource_metrics:
                    whose = attributes(resource.resource.attributes)
                    for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                        data = getattr(metric, metric.WhichOneof("data"))
                        for point in data.data_points:
                            key = (metric.name, whose.get("k8s.pod.name"), frozenset(attributes(point.attributes).items()))
                            found[key] = (metric, data, point)
        return found


class Grpc(Collector):
    def __init__(self, port: int = 0, tls: tuple[bytes, bytes, bytes] | None = None):
        super().__init__()
        self.port, self.tls = port, tls

    def __enter__(self):
        outer = self

        def answer(kept, request, context, response):
            code = outer.took(kept, request, dict(context.invocation_metadata()))
            if code is not None:
                context.abort(code, "not now")
            return response

        class Logs(logs_service_pb2_grpc.LogsServiceServicer):
            def Export(self, request, context):
                return answer(outer.logs, request, context, logs_service_pb2.ExportLogsServiceResponse())

        class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
            def Export(self, request, context):
                return answer(outer.metrics, request, context, metrics_service_pb2.ExportMetricsServiceResponse())

        # A port that somebody has just left can be taken at once.
        self.server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), self.server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), self.server)
        address = f"127.0.0.1:{self.port}"
        if self.tls:
            certificate, key, authority = self.tls
            credentials = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
            self.port = self.server.add_secure_port(address, credentials)
        else:
            self.port = self.server.add_insecure_port(address)
        self.server.start()
        return self

    def __exit__(self, *_):
        self.server.stop(None).wait()


class Http(Collector):
    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/x-protobuf"
                service, kept, name = {
                    "/v1/logs": (logs_service_pb2, outer.logs, "ExportLogsService"),
                    "/v1/metrics": (metrics_service_pb2, outer.metrics, "ExportMetricsService"),
                }[self.path]
                request = getattr(service, f"{name}Request").FromString(body)
                status = outer.took(kept, request, {key.lower(): value for key, value in self.headers.items()}) or 200
                answer = getattr(service, f"{name}Response")().SerializeToString()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
