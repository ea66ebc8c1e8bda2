"""OpenAI's fine-tuning API, or one of the same shape, through the openai SDK (3.57.0); runs inside worker.py."""

from pathlib import Path


class Calls:
    """One client; methods are the operations of worker.py."""

    def __init__(self, tools, *, base_url, api_key, timeout_s, account):
        import openai

        self.sdk, self.tools = openai, tools
        self.client = openai.OpenAI(api_key=api_key, base_url=base_url or None, max_retries=0, timeout=timeout_s)

    def find_file(self, name, num_bytes):
        files = [self.tools.plain(f) for f in self.client.files.list(purpose="fine-tune")]
        same = [f for f in files if f.get("filename") == name and f.get("bytes") == num_bytes]
        return max(same, key=lambda f: f.get("created_at") or 0, default=None)

    def upload(self, path, num_rows):
        with open(path, "rb") as file:
            return self.tools.plain(self.client.files.create(file=file, purpose="fine-tune"))

    def file(self, file_id):
        return self.tools.plain(self.client.files.retrieve(file_id))

    def create(self, request, key):
        answer = self.client.fine_tuning.jobs.create(**request, extra_headers={"Idempotency-Key": key})
        return self.tools.plain(answer)

    def job(self, job_id):
        return self.tools.plain(self.client.fine_tuning.jobs.retrieve(job_id))

    def jobs(self, tag):
        found = [self.tools.plain(job) for job in self.client.fine_tuning.jobs.list(limit=100)]
        return [j for j in found if tag in ((j.get("metadata") or {}).get("shoestring") or j.get("suffix") or "")]

    def events(self, job_id):
        return [self.tools.plain(event) for event in self.client.fine_tuning.jobs.list_events(job_id, limit=100)]

    def cancel(self, job_id):
        return self.tools.plain(self.client.fine_tuning.jobs.cancel(job_id))

    def download(self, job_id, artifact, folder):
        """The files of the last checkpoint, where the vendor hands them out. An empty list: it only serves them."""
        checkpoints = [self.tools.plain(c) for c in self.client.fine_tuning.jobs.checkpoints.list(job_id)]
        last = max(checkpoints, key=lambda c: c.get("step_number") or 0, default=None)
        fetched = []
        for file_id in (last or {}).get("result_files") or []:
            name = Path(self.tools.plain(self.client.files.retrieve(file_id))["filename"]).name
            streaming = self.client.files.with_streaming_response
            fetched.append(
                self.tools.fetch(
                    Path(folder) / "unpacked" / name,
                    lambda headers, f=file_id, s=streaming: s.content(f, extra_headers=headers),
                )
            )
        return fetched
