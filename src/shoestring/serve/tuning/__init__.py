"""OpenAI's fine-tuning API on our gateway: files and jobs of clients, each job a run of ours."""
