"""A bucket of this machine: moto's S3 server, through s3fs, as any other S3."""

from __future__ import annotations

import logging
import os
import uuid

import pytest


@pytest.fixture(scope="session")
def s3():
    """Address of a new folder in a bucket, at each call. The variables that lead there are set for subprocesses too."""
    server = pytest.importorskip("moto.server", reason="needs moto: pip install '.[test]'")
    pytest.importorskip("s3fs")
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{running.get_host_and_port()[1]}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in variables.items():
            patched.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield lambda: f"s3://bucket/{os.getpid()}/{uuid.uuid4().hex}"
    running.stop()
