"""Fireworks' API through its SDK (written against fireworks-ai 1.2.30); runs inside worker.py.

Names of data sets and jobs are given by the caller here, so that nothing can be made twice.
"""

import contextlib
from pathlib import Path

ONE_REQUEST_BYTES = 150_000_000  # of datasets.upload; larger files go to a signed address


class Calls:
    """One client; methods are the operations of worker.py."""

    def __init__(self, tools, *, base_url, api_key, timeout_s, account):
        import fireworks

        self.sdk, self.tools = fireworks, tools
        self.client = fireworks.Fireworks(
            api_key=api_key, base_url=base_url or None, account_id=account, max_retries=0, timeout=timeout_s
        )

    def find_file(self, name, num_bytes):
        try:
            found = self.tools.plain(self.client.datasets.get(Path(name).stem))
        except self.sdk.NotFoundError:
            return None
        return found if found.get("state") == "READY" else None

    def upload(self, path, num_rows):
        dataset_id = Path(path).stem
        with contextlib.suppress(self.sdk.ConflictError):  # begun before: its bytes are sent again
            self.client.datasets.create(
                dataset_id=dataset_id, dataset={"user_uploaded": {}, "example_count": str(num_rows), "format": "CHAT"}
            )
        if Path(path).stat().st_size <= ONE_REQUEST_BYTES:
            with open(path, "rb") as file:
                self.client.datasets.upload(dataset_id, file=file)
        else:
            from fireworks.lib.dataset_upload import upload_dataset_shards

            upload_dataset_shards(self.client, dataset_id, str(path))
        return self.file(dataset_id)

    def file(self, file_id):
        return self.tools.plain(self.client.datasets.get(Path(file_id).name))

    def create(self, request, key):
        try:
            return self.tools.plain(self.client.supervised_fine_tuning_jobs.create(**request))
        except self.sdk.ConflictError:
            return self.job(request["supervised_fine_tuning_job_id"])

    def job(self, job_id):
        return self.tools.plain(self.client.supervised_fine_tuning_jobs.get(Path(job_id).name))

    def jobs(self, tag):
        listed = self.client.supervised_fine_tuning_jobs.list(page_size=200)
        return [job for job in map(self.tools.plain, listed) if tag in (job.get("name") or "").rpartition("/")[2]]

    def events(self, job_id):
        return []  # none are offered: state, status and progress stand in the job

    def cancel(self, job_id):
        self.client.supervised_fine_tuning_jobs.cancel(Path(job_id).name, body={})
        return self.job(job_id)

    def download(self, job_id, artifact, folder):
        import httpx

        model_id = Path(self.job(job_id)["outputModel"]).name
        signed = self.tools.plain(self.client.models.get_download_endpoint(model_id)).get("filenameToSignedUrls") or {}
        fetched = []
        with httpx.Client(follow_redirects=True, timeout=60) as http:  # signed addresses get no key

            @contextlib.contextmanager
            def opened(url, headers):
                with http.stream("GET", url, headers=headers) as response:
                    if response.status_code >= 400:
                        response.read()
                        raise self.sdk.APIStatusError(
                            f"{response.status_code} for a file of the model", response=response, body=None
                        )
                    yield response

            for name, url in sorted(signed.items()):
                path = Path(folder) / "unpacked" / Path(name).name
                fetched.append(self.tools.fetch(path, lambda headers, u=url: opened(u, headers)))
        return fetched
