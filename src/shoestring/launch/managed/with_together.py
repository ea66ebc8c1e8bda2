"""Together's API through its SDK (written against together 3.1.1); runs inside worker.py."""

from pathlib import Path


class Calls:
    """One client; methods are the operations of worker.py."""

    def __init__(self, tools, *, base_url, api_key, timeout_s, account):
        import together

        self.sdk, self.tools = together, tools
        self.client = together.Together(api_key=api_key, base_url=base_url or None, max_retries=0, timeout=timeout_s)

    def find_file(self, name, num_bytes):
        files = self.tools.plain(self.client.files.list())["data"]
        same = [f for f in files if f.get("filename") == name and f.get("bytes") == num_bytes]
        return max(same, key=lambda f: f.get("created_at") or 0, default=None)

    def upload(self, path, num_rows):
        def tell(event):
            self.tools.tell(event.uploaded_bytes, event.total_bytes)

        answer = self.client.files.upload(Path(path), purpose="fine-tune", check=False, progress_callback=tell)
        return self.tools.plain(answer)

    def file(self, file_id):
        return self.tools.plain(self.client.files.retrieve(file_id))

    def limits(self, model):
        return self.tools.plain(self.client.fine_tuning.model_limits(model_name=model))

    def estimate(self, request):
        return self.tools.plain(self.client.fine_tuning.estimate_price(**request))

    def create(self, request, key):
        return self.tools.plain(self.client.fine_tuning.create(**request))

    def job(self, job_id):
        return self.tools.plain(self.client.fine_tuning.retrieve(job_id))

    def jobs(self, tag):
        found = self.tools.plain(self.client.fine_tuning.list())["data"]
        return [job for job in found if tag in (job.get("suffix") or job.get("model_output_name") or "")]

    def events(self, job_id):
        return self.tools.plain(self.client.fine_tuning.list_events(job_id))["data"]

    def cancel(self, job_id):
        return self.tools.plain(self.client.fine_tuning.cancel(job_id))

    def download(self, job_id, artifact, folder):
        streaming = self.client.fine_tuning.with_streaming_response

        def opened(headers):
            return streaming.content(ft_id=job_id, checkpoint=artifact, extra_headers=headers)

        archive = Path(folder) / f"{artifact}.tar"
        fetched = self.tools.fetch(archive, opened)
        names = self.tools.unpack(archive, Path(folder) / "unpacked")
        return [{**fetched, "unpacked": names}]
