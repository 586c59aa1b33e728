"""A server that has the chat route alone, and passes it on to another: an engine of others that knows no other API.

    python chat_only.py 127.0.0.1:9001 127.0.0.1:9000
"""

import http.client
import http.server
import sys

LISTEN, FAR = (address.rsplit(":", 1) for address in sys.argv[1:3])
PASSED = {("GET", "/v1/models"), ("POST", "/v1/chat/completions")}


class Gate(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/health":
            self.reply(200, b"ok")
        elif (self.command, self.path.rstrip("/")) in PASSED:
            self.pass_on(body)
        else:
            self.reply(404, b'{"error":{"message":"Not Found","type":"invalid_request_error","param":null,"code":null}}')

    do_GET = do_POST = do_HEAD = do_DELETE = do_OPTIONS = answer

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def pass_on(self, body):
        far = http.client.HTTPConnection(FAR[0], int(FAR[1]), timeout=120)
        far.request(self.command, self.path, body, {"content-type": "application/json"})
        answer = far.getresponse()
        self.send_response(answer.status)
        self.send_header("content-type", answer.headers.get("content-type", "application/json"))
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            while piece := answer.read1(1 << 16):
                self.wfile.write(piece)
                self.wfile.flush()
        finally:
            far.close()

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer((LISTEN[0], int(LISTEN[1])), Gate).serve_forever()
