"""A stand-in for s3fs: s3://kept/ is the folder that the stand-in for SkyPilot mounts as the bucket."""

import os

from fsspec.implementations.local import LocalFileSystem


class S3FileSystem(LocalFileSystem):
    """Files of the bucket."""

    protocol = ("s3", "s3a")

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path)
        folder = os.path.join(os.environ["STAND_IN_SKY"], "bucket")
        return folder + path.removeprefix("s3://kept") if path.startswith("s3://kept") else path
