"""Run inside the stock Triton client's own environment: load and unload models, sync and asyncio.

    python tritonclient_control.py ADDRESS

Against a server in explicit mode over the models `affine` and `slow`, with none loaded. Prints one
line for each client whose every step went as it should.
"""

from __future__ import annotations

import asyncio
import json
import sys

import tritonclient.grpc as sync
import tritonclient.grpc.aio as aio
from tritonclient.utils import InferenceServerException


def with_sync_client(address: str) -> None:
    with sync.InferenceServerClient(address) as client:
        names = [(m.name, m.state) for m in client.get_model_repository_index().models]
        assert names == [("affine", ""), ("slow", "")], names
        assert not client.is_model_ready("affine")
        client.load_model("affine")
        assert client.is_model_ready("affine")
        client.load_model("affine", config=json.dumps({"max_batch_size": 7}))
        assert client.get_model_config("affine").config.max_batch_size == 7
        refused("is not supported", client.load_model, "affine", files={"file:1/model.py": b"x"})
        refused("unknown field", client.load_model, "affine", config='{"max_batch_sise": 7}')
        refused("failed to load 'nobody', failed to poll", client.load_model, "nobody")
        assert client.is_model_ready("affine")
        client.unload_model("affine", unload_dependents=True)
        assert not client.is_model_ready("affine")
    print("sync: every step in order")


def refused(text: str, call: object, *arguments: object, **options: object) -> None:
    try:
        call(*arguments, **options)  # type: ignore[operator]
        told = "nothing"
    except InferenceServerException as error:
        told = str(error)
    assert text in told, told


async def with_asyncio_client(address: str) -> None:
    async with aio.InferenceServerClient(address) as client:
        await client.load_model("slow")
        states = {
            (m.name, m.state)
            for m in (await client.get_model_repository_index()).models
            if m.name == "slow"
        }
        assert states == {("slow", "READY")}, states
        await client.unload_model("slow")
        assert not await client.is_model_ready("slow")
    print("asyncio: every step in order")


def main() -> int:
    (address,) = sys.argv[1:]
    with_sync_client(address)
    asyncio.run(with_asyncio_client(address))
    return 0


if __name__ == "__main__":
    sys.exit(main())
