"""A host of one build, for as long as something is measured: its folders, its models.yaml, its port, its log."""

import os
import shutil
import socket
import subprocess
import tempfile
import time


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Host:
    """`build`: a folder with `aihost`; `plugins`: files of it, by the names that they get; `yaml`: what follows the folders."""

    def __init__(self, build, plugins, yaml):
        self.folder = tempfile.TemporaryDirectory()
        at = lambda name: os.path.join(self.folder.name, name)
        os.mkdir(at("plugins"), 0o755)
        for name, file in plugins.items():
            shutil.copy(os.path.join(build, file), at(f"plugins/{name}.so"))
        self.port = free_port()
        with open(at("models.yaml"), "w") as file:
            file.write(f"listen: 127.0.0.1:{self.port}\n")
            file.write("".join(f"{key}_dir: {at(key)}\n" for key in ("plugins", "models", "state")))
            file.write(yaml)
        # Not beside models.yaml: that folder is watched.
        os.mkdir(at("logs"))
        self.log = open(at("logs/log"), "w")
        command = [os.path.join(build, "aihost"), "serve", "--config", at("models.yaml")]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise SystemExit(open(at("logs/log")).read())
                time.sleep(0.05)

    def end(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()
        self.folder.cleanup()
