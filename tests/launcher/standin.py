"""A server that stands in for SGLang or the router: run as a script, answers `GET /health`.

Stand-ins leave children behind when they are killed, as SGLang does: `--straggler PORT` starts
one in a session of its own that listens on PORT.
"""

import argparse
import http.server
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


class Answers(http.server.BaseHTTPRequestHandler):
    news: Path | None = None
    key: str | None = None

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        if self.key and self.headers["Authorization"] != f"Bearer {self.key}":
            self.send_error(401)
            return
        if self.news is not None:
            with self.news.open("a") as file:
                file.write(self.path + "\n")
        if self.path == "/die":
            os.kill(os.getpid(), signal.SIGKILL)
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        sys.stdout.write(format % args + "\n")
        sys.stdout.flush()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--straggler", type=int)
    parser.add_argument("--fail", help="write this and end with code 3")
    parser.add_argument("--fail-if", type=Path, help="end with code 4 if this file is there")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--says", help="write this to the log at once")
    parser.add_argument("--news", type=Path, help="append the paths of POST requests to this file")
    parser.add_argument("--key", help="what POST requests must show")
    args, _ = parser.parse_known_args()
    if args.fail:
        sys.stdout.write(f"{args.fail}\n")
        sys.exit(3)
    if args.fail_if and args.fail_if.exists():
        sys.exit(4)
    if args.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if args.straggler:
        command = [sys.executable, "-S", __file__, "--port", str(args.straggler), "--ignore-term"]
        subprocess.Popen(command, start_new_session=True)
    if args.says:
        sys.stdout.write(f"{args.says}\n")
        sys.stdout.flush()
    if args.never_ready:
        time.sleep(600)
    Answers.news, Answers.key = args.news, args.key
    sys.stdout.write(f"listening on {args.port}\n")
    sys.stdout.flush()
    Server(("127.0.0.1", args.port), Answers).serve_forever()


if __name__ == "__main__":
    main()
