"""Triton with its Python backend, from the wheel of `nvidia-pytriton`, without that wrapper.

The wheel has the server, the backend and a stub for each Python; the backend's folder is put
together here from them.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from bench.peers.environments import Environment, UnavailableError
from bench.peers.peer import SERVED, Launch, Setting, order
from bench.peers.wire import Grpc
from bench.peers.workloads import Workload

TENSORS = {
    "mlp": ("input", "TYPE_FP32", "784", "output", "10"),
    "images": ("input", "TYPE_FP32", "3, 224, 224", "output", "3"),
    "sentences": ("text", "TYPE_STRING", "1", "embedding", "384"),
}


class TritonPeer:
    name = "Triton"
    wire = Grpc()
    echoes = False
    polls = False

    def __init__(self) -> None:
        # numpy below 2, which the stub of this version was built for.
        packages = ("nvidia-pytriton", "numpy<2", "safetensors", "tokenizers", "torch")
        self.environment = Environment("triton", packages)

    @property
    def version(self) -> str:
        return f"2.51, Python backend (nvidia-pytriton {self.environment.version})"

    def install(self) -> None:
        self.environment.install()
        if not (self._wheel / "bin" / "tritonserver").exists():
            raise UnavailableError("this wheel of nvidia-pytriton has no tritonserver")

    def settings(self, workload: str) -> Sequence[Setting]:
        if workload == "sentences":
            return [*(Setting(rows) for rows in (1, 4, 8, 16)), Setting(8, 10.0)]
        if workload == "images":
            return [Setting(16), Setting(4), Setting(1)]
        return [Setting(64), Setting(16), Setting(1), Setting(64, 0.1), Setting(64, 0.5)]

    def launch(self, workload: Workload, setting: Setting, port: int, directory: Path) -> Launch:
        repository, backends = directory / "repository", directory / "backends"
        version = repository / workload.name / "1"
        version.mkdir(parents=True)
        shutil.copyfile(SERVED / "triton_model.py", version / "model.py")
        (version.parent / "config.pbtxt").write_text(configuration(workload.name, setting))
        self._link_backend(backends / "python")
        regions = f"peers-{port}-"
        argv: list[str | Path] = [
            self._wheel / "bin" / "tritonserver",
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            *("--allow-gpu-metrics=false", "--allow-http=false", "--allow-metrics=false"),
            f"--backend-config=python,shm-region-prefix-name={regions}",
            *("--grpc-address=127.0.0.1", f"--grpc-port={port}"),
        ]
        environment = order(workload, setting, port)
        environment["PYTHONPATH"] += f":{self._packages}"
        libraries = (self._packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
        environment["LD_LIBRARY_PATH"] = ":".join(map(str, libraries))
        return Launch(argv, environment, regions)

    @property
    def _packages(self) -> Path:
        return self.environment.directory / "lib" / sysconfig_folder() / "site-packages"

    @property
    def _wheel(self) -> Path:
        return self._packages / "pytriton" / "tritonserver"

    def _link_backend(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        stub = (
            self._wheel
            / "python_backend_stubs"
            / sysconfig.get_python_version()
            / "triton_python_backend_stub"
        )
        for file in (*(self._wheel / "backends" / "python").iterdir(), stub):
            if not (folder / file.name).exists():
                (folder / file.name).symlink_to(file)


def sysconfig_folder() -> str:
    """The folder of this Python's libraries, such as `python3.11`."""
    return f"python{sysconfig.get_python_version()}"


def configuration(model: str, setting: Setting) -> str:
    """`config.pbtxt`; `dynamic_batching { }` alone is Triton's default, batches of what waits."""
    given, datatype, shape, answered, width = TENSORS[model]
    text = (
        f'name: "{model}"\nbackend: "python"\nmax_batch_size: {setting.rows}\n'
        f'input {{ name: "{given}" data_type: {datatype} dims: [ {shape} ] }}\n'
        f'output {{ name: "{answered}" data_type: TYPE_FP32 dims: [ {width} ] }}\n'
        "instance_group { kind: KIND_CPU count: 1 }\n"
    )
    if setting.rows > 1:
        delay = f"max_queue_delay_microseconds: {setting.delay_ms * 1e3:.0f} "
        text += f"dynamic_batching {{ {delay if setting.delay_ms else ''}}}\n"
    return text
