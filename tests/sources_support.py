"""An API and a Kafka cluster on this machine."""

import json
import ssl
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from confluent_kafka import Consumer, Producer, TopicPartition


class Server:
    """A local API: `answer(query, number)` gives each request's status, headers and body, or bytes to send as they are.

    Attributes:
        asked: The path with query and the headers of each request.
    """

    def __init__(self, answer: Callable, tls: tuple[str, str] | None = None) -> None:
        server = self
        self.asked: list[tuple[str, dict[str, str]]] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.asked.append((self.path, dict(self.headers)))
                query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
                status, headers, body = answer(query, len(server.asked))
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                if int(headers.get("Content-Length", 0)) > len(content):
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # clients that go away
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.host = f"127.0.0.1:{self._http.server_address[1]}"
        self.uri = f"rest+http{'s' if tls else ''}://{self.host}/v1/customers"
        Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class Cluster:
    """librdkafka's mock cluster, which exists as long as its producer; a topic has four partitions."""

    def __init__(self) -> None:
        self.producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock:1"})
        broker = next(iter(self.producer.list_topics(timeout=60).brokers.values()))
        self.address = f"{broker.host}:{broker.port}"

    def send(self, topic: str, values: list, partition: int | None = None) -> None:
        for number, value in enumerate(values):
            raw = value if isinstance(value, bytes | None) else json.dumps(value).encode()
            self.producer.produce(topic, value=raw, partition=number % 3 if partition is None else partition)
            self.producer.poll(0)
        assert self.producer.flush(60) == 0

    def uri(self, topic: str, rest: str = "") -> str:
        return f"kafka://{self.address}/{topic}?group=churn{rest}"

    def committed(self, topic: str) -> dict[int, int]:
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "churn"})
        found = consumer.committed([TopicPartition(topic, number) for number in range(4)], timeout=60)
        consumer.close()
        return {place.partition: place.offset for place in found if place.offset >= 0}
