#!/usr/bin/env python3
"""frugal chat in a real pseudo-terminal: editing, history, slash commands, Ctrl-C, Ctrl-D.

    chat_test.py COMMAND MODELS_FOLDER
"""

import json
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
import unittest

COMMAND, MODELS = None, None


class Terminal:
    """The command on a pseudo-terminal of its own."""

    def __init__(self, *args, home):
        self.output = ""
        pid, self.fd = pty.fork()
        if pid == 0:
            os.environ.update(HOME=home, TERM="xterm", COLUMNS="200")
            os.execv(COMMAND, [COMMAND, *args])
        self.pid = pid

    def send(self, text):
        os.write(self.fd, text.encode())

    def prompt(self, pattern="> ", seconds=60):
        """Waits for the prompt, and until the editor has the terminal: it prints the prompt first, and what comes
        while it switches the terminal's mode can be lost. A person is never that fast."""
        taken = self.expect(pattern)
        end = time.monotonic() + seconds
        while termios.tcgetattr(self.fd)[3] & termios.ICANON:
            if time.monotonic() > end:
                raise AssertionError(f"the editor never took the terminal: {self.output!r}")
            time.sleep(0.01)
        return taken

    def read_some(self, seconds):
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # the other end is closed
                return False
            self.output += data.decode(errors="replace")
            return bool(data)
        return True

    def expect(self, pattern, seconds=120):
        """Waits until `pattern` comes; what came up to its end is taken away and returned."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.output)):
            if time.monotonic() > end or not self.read_some(1):
                raise AssertionError(f"no {pattern!r} in {self.output!r}")
        taken, self.output = self.output[: match.end()], self.output[match.end():]
        return taken

    def status(self, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.read_some(0.1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"the chat did not end: {self.output!r}")


class ChatTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.home = self.folder.name
        self.model = str(pathlib.Path(MODELS) / "smollm2-135m-instruct-q4_1.gguf")

    def tearDown(self):
        self.folder.cleanup()

    def chat(self, *args):
        terminal = Terminal("chat", "-m", self.model, *args, home=self.home)
        terminal.prompt()
        return terminal

    def test_conversation(self):
        terminal = self.chat("-n", "16")
        terminal.send("/help\n")
        terminal.expect("/exit")
        terminal.prompt()
        terminal.send("The capital of Italy?\n")
        terminal.expect("Rom")  # this small model mixes languages: Roma, Rome
        terminal.prompt()
        terminal.send("/stats\n")
        self.assertIn("tokens/s", terminal.expect("energy"))
        terminal.prompt()
        terminal.send("And of Spain?\n")
        terminal.prompt("\n> ")
        terminal.send("/stats\n")
        stats = terminal.expect("energy")
        self.assertRegex(stats, r"(\d+) more from the cache")  # the first turn was not computed again
        self.assertGreater(int(re.search(r"(\d+) more from the cache", stats).group(1)), 20)
        terminal.prompt()
        saved = pathlib.Path(self.home) / "talk.json"
        terminal.send(f"/save {saved}\n")
        terminal.expect("4 messages")
        messages = json.loads(saved.read_text())["messages"]
        self.assertEqual([m["role"] for m in messages], ["user", "assistant"] * 2)
        self.assertEqual(messages[0]["content"], "The capital of Italy?")
        terminal.send("/reset\n")
        terminal.expect("forgotten")
        terminal.send("/nonsense\n")
        terminal.expect("there is no command /nonsense")
        terminal.send("/save /nonexistent/folder/x\n")
        terminal.expect("frugal: error: ")
        terminal.send("/exit\n")
        self.assertEqual(terminal.status(), 0)

    def test_interrupt_stops_the_answer_and_not_the_program(self):
        terminal = self.chat("--ignore-end")
        terminal.send("Tell me a very long story.\n")
        terminal.expect("story")  # the echo of the question; what comes next is the answer
        terminal.expect("[a-z]{3,} [a-z]{2,} ")
        terminal.send("\x03")
        terminal.expect(r"\[stopped\]")
        terminal.prompt()
        # At the prompt it drops the line. A signal between the printing of the prompt and the read that waits for the
        # line waits with it for the next key: faster than a person types, so the test types the line first.
        terminal.send("half a line")
        terminal.expect("half a line")
        time.sleep(0.3)
        terminal.send("\x03")
        terminal.prompt()
        terminal.send("/stats\n")
        self.assertIn("cancelled", terminal.expect("energy"))
        terminal.prompt()
        terminal.send("\x04")  # Ctrl-D
        self.assertEqual(terminal.status(), 0)

    def test_editing_and_history(self):
        terminal = self.chat("-n", "2")
        terminal.send("/helX\x7fp\n")  # backspace
        terminal.expect("/reset")
        terminal.prompt()
        terminal.send("/exit\n")
        self.assertEqual(terminal.status(), 0)
        self.assertIn("/help", (pathlib.Path(self.home) / ".frugal_history").read_text().replace("\\040", " "))
        terminal = self.chat("-n", "2")
        terminal.send("\x1b[A\x1b[A\n")  # up, up: the line before /exit, from the last conversation
        terminal.expect("/reset")
        terminal.prompt()
        terminal.send("\x04")
        self.assertEqual(terminal.status(), 0)

    def test_pipe_gives_a_json_line_for_each_question(self):
        done = subprocess.run([COMMAND, "chat", "-m", self.model, "-n", "4", "--json"], input=b"Hello\n\nWho are you?\n",
                              capture_output=True, timeout=240, env=dict(os.environ, HOME=self.home))
        self.assertEqual(done.returncode, 0, done.stderr)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual(len(answers), 2)
        self.assertGreater(answers[1]["reused_tokens"], 0)

    def test_model_without_chat_form(self):
        base = pathlib.Path(MODELS) / "gemma-3-270m-q4_k_m.gguf"
        done = subprocess.run([COMMAND, "chat", "-m", str(base)], input=b"", capture_output=True, timeout=240)
        if done.returncode == 0:
            self.skipTest("this model's file has a chat template")
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn(b"no chat form", done.stderr)


if __name__ == "__main__":
    COMMAND, MODELS = os.path.abspath(sys.argv[1]), sys.argv[2]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
