"""A small service: answers GET /health, and POST /v1/chat/completions as OpenAI's API does, streaming when asked to.

Any HTTP/1.1 server does: what counts is that it listens on MLOC_PORT of 127.0.0.1 and answers its health path with 200.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION = os.environ.get("VERSION", "1")
# How long it takes to become ready, and from one word to the next, in seconds.
LOADING = float(os.environ.get("LOADING", "0"))
PER_WORD = float(os.environ.get("PER_WORD", "0.01"))
WHO = f"{os.environ.get('MLOC_REPLICA', '0')}.{os.environ.get('MLOC_ATTEMPT', '1')}"
begun = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, form, *args):
        pass

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/health":
            ready = time.monotonic() - begun >= LOADING
            return self.answer(200 if ready else 503, {"ready": ready})
        self.answer(200, {"path": self.path, "version": VERSION, "replica": WHO, "user": self.headers.get("mloc-user")})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        if self.path != "/v1/chat/completions":
            return self.answer(404, {"error": {"message": f"no {self.path} here"}})
        words = [f"word{n}" for n in range(int(asked.get("max_tokens", 8)))]
        if not asked.get("stream"):
            time.sleep(PER_WORD * len(words))
            message = {"role": "assistant", "content": " ".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return self.answer(200, {"object": "chat.completion", "model": asked["model"], "choices": [choice],
                                     "version": VERSION, "replica": WHO})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for word in words:
            time.sleep(PER_WORD)
            choice = {"index": 0, "delta": {"content": word + " "}, "finish_reason": None}
            self.event(json.dumps({"object": "chat.completion.chunk", "model": asked["model"], "choices": [choice],
                                   "replica": WHO}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data):
        piece = f"data: {data}\n\n".encode()
        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.flush()


def main():
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["MLOC_PORT"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"version {VERSION} listens on {server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
