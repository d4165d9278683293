"""Celery's own event receiver and state, and a count of task events: the least that a monitor made of them does for one.

Arguments: URL of the broker, port that answers with the count.
"""

import http.server
import sys
import threading

from celery import Celery

handled = 0


class Count(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(handled).encode())

    def log_message(self, *_):
        pass


def main():
    app = Celery(broker=sys.argv[1])
    state = app.events.State()

    def handle(event):
        global handled
        state.event(event)
        handled += event["type"].startswith("task-")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Count)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": handle})
        while True:
            try:
                receiver.capture(limit=None, timeout=None, wakeup=True)
            except (OSError, *connection.connection_errors) as error:
                print("lost the broker:", error, flush=True)


main()
